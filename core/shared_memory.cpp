#include "core/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <fstream>

#include "core/errno_text.h"

namespace moe {
namespace {

// Its length is fixed for good: nobody who maps it can be hit by the other's cutting it short.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Tells this machine, since it was started, from all others. Empty where there is no /proc.
std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

// The parts of a name, "BOOT/PID/FILE/INODE": where its maker has it open, and what tells it from whatever else may be
// open there by now, or in a process of another container with that number.
struct Place {
  std::string boot;
  unsigned long process = 0;
  unsigned long file = 0;
  unsigned long inode = 0;

  std::string path() const { return Cat("/proc/", process, "/fd/", file); }
};

Result<Place> ParseName(std::string_view name) {
  const auto wrong = [name] { return InvalidArgument("\"", name.substr(0, 100), "\" is no name of shared memory"); };
  const std::size_t end = name.find('/');
  if (end == std::string_view::npos) return wrong();
  Place place{.boot = std::string(name.substr(0, end))};
  std::array<unsigned long*, 3> numbers = {&place.process, &place.file, &place.inode};
  const char* at = name.data() + end;
  const char* const stop = name.data() + name.size();
  for (unsigned long* const number : numbers) {
    if (at == stop || *at != '/') return wrong();
    const auto [rest, error] = std::from_chars(at + 1, stop, *number);
    if (error != std::errc()) return wrong();
    at = rest;
  }
  if (at != stop) return wrong();
  return place;
}

Result<std::span<std::byte>> Map(int file, std::size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED)
    return ResourceExhausted("shared memory of ", bytes, " bytes cannot be mapped: ", ErrnoText());
  return std::span(static_cast<std::byte*>(memory), bytes);
}

Status CheckIs(const struct stat& is, const Place& place, std::size_t bytes) {
  if (is.st_ino != place.inode || !S_ISREG(is.st_mode)) return NotFound("shared memory ", place.path(), " has gone");
  if (is.st_uid != geteuid())
    return InvalidArgument("shared memory ", place.path(), " is user ", is.st_uid, "'s, this process runs as ",
                           geteuid());
  if (static_cast<std::size_t>(is.st_size) == bytes) return Status::Ok();
  return InvalidArgument("shared memory ", place.path(), " has ", is.st_size, " bytes instead of ", bytes);
}

Status CheckOpened(int file, const Place& place, std::size_t bytes) {
  struct stat is {};
  if (fstat(file, &is) != 0) return NotFound("shared memory ", place.path(), ": ", ErrnoText());
  MOE_RETURN_IF_ERROR(CheckIs(is, place, bytes));
  const int seals = fcntl(file, F_GET_SEALS);  // -1 of a file that cannot have any
  if (seals >= 0 && (seals & kSeals) == kSeals) return Status::Ok();
  return InvalidArgument("shared memory ", place.path(), " could change its length");
}

}  // namespace

Result<SharedMemory> SharedMemory::Create(std::size_t bytes) {
  const auto refused = [bytes](const char* what) {
    return ResourceExhausted("shared memory of ", bytes, " bytes: ", what, ": ", ErrnoText());
  };
  const int file = memfd_create("moe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return refused("memfd_create");
  SharedMemory made(file, {}, "");
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0) return refused("ftruncate");
  if (fcntl(file, F_ADD_SEALS, kSeals) != 0) return refused("sealing");
  struct stat is {};
  if (fstat(file, &is) != 0) return refused("fstat");
  MOE_ASSIGN_OR_RETURN(made.memory_, Map(file, bytes));
  made.name_ = Cat(BootId(), "/", getpid(), "/", file, "/", is.st_ino);
  return made;
}

Result<SharedMemory> SharedMemory::Open(std::string_view name, std::size_t bytes) {
  MOE_ASSIGN_OR_RETURN(const Place place, ParseName(name));
  if (place.boot.empty() || place.boot != BootId()) return NotFound("shared memory ", name, " is another machine's");
  // Looked at before it is opened: a name may come from anyone, and opening a device may do something.
  struct stat is {};
  if (stat(place.path().c_str(), &is) != 0)
    return NotFound("shared memory ", place.path(), " cannot be seen: ", ErrnoText());
  MOE_RETURN_IF_ERROR(CheckIs(is, place, bytes));
  const int file = open(place.path().c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return NotFound("shared memory ", place.path(), " cannot be opened: ", ErrnoText());
  Result<SharedMemory> opened = [&]() -> Result<SharedMemory> {
    MOE_RETURN_IF_ERROR(CheckOpened(file, place, bytes));
    MOE_ASSIGN_OR_RETURN(const std::span<std::byte> memory, Map(file, bytes));
    return SharedMemory(-1, memory, std::string(name));
  }();
  close(file);  // the mapping stays
  return opened;
}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(memory_, other.memory_);
  std::swap(name_, other.name_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
  if (file_ >= 0) close(file_);
}

}  // namespace moe
