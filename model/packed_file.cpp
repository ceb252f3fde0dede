#include "model/packed_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "core/errno_text.h"
#include "core/text.h"
#include "model/content_hash.h"

namespace moe {
namespace {

constexpr std::uint32_t kFormat = 1;
constexpr std::array<char, 8> kMagic = {'M', 'O', 'E', 'P', 'A', 'C', 'K', '\n'};
// As this machine writes it: one of the other byte order reads another number.
constexpr std::uint32_t kByteOrder = 0x01020304;
// Read or written and hashed at a time: hashed while it is still in the second-level cache.
constexpr std::size_t kBlock = std::size_t{256} << 10;

/// The begin of a file; the matrices follow, one after the other.
struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t byte_order = kByteOrder;
  std::uint32_t format = kFormat;
  std::uint32_t packing = kPackingVersion;
  std::uint32_t type = 0;  // WeightType
  std::uint64_t checkpoint = 0;
  std::uint64_t recipe = 0;
  std::uint64_t content_bytes = 0;  // of the matrices
  std::uint64_t content_hash = 0;
  std::uint64_t zero = 0;  // makes it a cache line

  bool operator==(const Header&) const = default;
};
static_assert(sizeof(Header) == 64 && std::has_unique_object_representations_v<Header>);

Header HeaderFor(const PackedFileKey& key) {
  Header header;
  header.type = static_cast<std::uint32_t>(key.type);
  header.checkpoint = key.checkpoint;
  header.recipe = key.recipe;
  return header;
}

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }

  /// The next bytes.
  Status Read(std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t got = read(descriptor_, out.data(), out.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return InvalidArgument("cannot be read: ", ErrnoText());
      if (got == 0) return InvalidArgument("became shorter while it was read");
      out = out.subspan(static_cast<std::size_t>(got));
    }
    return Status::Ok();
  }

  Status WriteAt(std::uint64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t put = pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return ResourceExhausted(ErrnoText());
      bytes = bytes.subspan(static_cast<std::size_t>(put));
      offset += static_cast<std::uint64_t>(put);
    }
    return Status::Ok();
  }

 private:
  const int descriptor_;
};

/// That a file is of what is wanted.
Status CheckKey(const Header& found, const Header& wanted) {
  if (found.magic != wanted.magic) return InvalidArgument("is not a file of packed weights");
  if (found.byte_order != wanted.byte_order) return InvalidArgument("was written on a machine of another byte order");
  if (found.format != wanted.format)
    return InvalidArgument("is stale: it has format ", found.format, ", this program ", wanted.format);
  if (found.packing != wanted.packing)
    return InvalidArgument("is stale: it has packing ", found.packing, ", this program ", wanted.packing);
  if (found.checkpoint != wanted.checkpoint)
    return InvalidArgument("is stale: the checkpoint's files are not those that it was made from");
  if (found.recipe != wanted.recipe || found.type != wanted.type)
    return InvalidArgument("is stale: it holds other weights than the model's configuration describes");
  return Status::Ok();
}

/// That it is as long as that must be.
Status CheckSize(const Header& found, const Header& wanted, std::uint64_t file_bytes) {
  if (found.content_bytes != wanted.content_bytes || found.zero != wanted.zero)
    return InvalidArgument("is damaged: its header contradicts itself");
  if (file_bytes != sizeof(Header) + wanted.content_bytes)
    return InvalidArgument("has ", file_bytes, " bytes, not ", sizeof(Header) + wanted.content_bytes,
                           " (is it truncated?)");
  return Status::Ok();
}

Status ReadContent(const File& file, std::span<std::byte> storage, ContentHash& hash) {
  while (!storage.empty()) {
    const std::span block = storage.first(std::min(kBlock, storage.size()));
    MOE_RETURN_IF_ERROR(file.Read(block));
    hash.AddBytes(block);
    storage = storage.subspan(block.size());
  }
  return Status::Ok();
}

/// A file beside the one that is to be, which a lock makes this writer's alone. One name for all writers, so that
/// whatever is left by one that was killed is taken over by the next and never piles up.
class Draft {
 public:
  explicit Draft(std::filesystem::path final_path)
      : final_path_(std::move(final_path)),
        path_(final_path_.string() + ".part"),
        file_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666)) {}
  ~Draft() {
    if (owned_) unlink(path_.c_str());
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  /// False: another writer has it.
  Result<bool> Own() {
    if (!file_.is_open()) return ResourceExhausted(ErrnoText());
    if (flock(file_.descriptor(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return false;
      return ResourceExhausted("no lock: ", ErrnoText());
    }
    // Only who has the lock renames. The one before may have done so between the opening above and the lock; then this
    // is the finished file, which is nobody's to write any more.
    struct stat opened {};
    struct stat named {};
    if (fstat(file_.descriptor(), &opened) != 0 || lstat(path_.c_str(), &named) != 0) return false;
    owned_ = opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
    if (!owned_) return false;
    if (!S_ISREG(opened.st_mode)) return ResourceExhausted("is not a file");
    if (ftruncate(file_.descriptor(), 0) != 0) return ResourceExhausted(ErrnoText());
    return true;
  }

  const File& file() const { return file_; }

  /// Nothing is forced to the disk before: what a crash of the machine leaves is found out by its hash.
  Status Finish() {
    if (rename(path_.c_str(), final_path_.c_str()) != 0) return ResourceExhausted(ErrnoText());
    owned_ = false;
    return Status::Ok();
  }

 private:
  const std::filesystem::path final_path_;
  const std::filesystem::path path_;
  const File file_;
  bool owned_ = false;
};

/// A write past the limit would end the process with a signal.
Status CheckSizeLimit(std::uint64_t bytes) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur)
    return Status::Ok();
  return ResourceExhausted("it takes ", bytes, " bytes, files may have ", limit.rlim_cur, " here (ulimit -f)");
}

}  // namespace

Result<std::vector<PackedMatrix>> ReadPackedFile(const std::filesystem::path& path, const PackedFileKey& key,
                                                 std::span<const PackedShape> shapes) {
  // O_NONBLOCK: a pipe of that name must not hang the start; for regular files it means nothing.
  const File file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) {
    if (errno == ENOENT || errno == ENOTDIR) return NotFound("does not exist");
    return InvalidArgument("cannot be opened: ", ErrnoText());
  }
  struct stat status {};
  if (fstat(file.descriptor(), &status) != 0 || !S_ISREG(status.st_mode)) return InvalidArgument("is not a file");
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
  Header found;
  if (file_bytes < sizeof(found))
    return InvalidArgument("has ", file_bytes, " bytes, too few for a header (is it truncated?)");
  MOE_RETURN_IF_ERROR(file.Read(std::as_writable_bytes(std::span(&found, 1))));

  Header wanted = HeaderFor(key);
  MOE_RETURN_IF_ERROR(CheckKey(found, wanted));
  std::vector<PackedMatrix> matrices;
  for (const PackedShape& shape : shapes) {
    matrices.push_back(PackedMatrix::Zeros(shape.rows, shape.cols, key.type));
    wanted.content_bytes += matrices.back().bytes();
  }
  MOE_RETURN_IF_ERROR(CheckSize(found, wanted, file_bytes));
  posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  ContentHash hash;
  for (PackedMatrix& matrix : matrices) MOE_RETURN_IF_ERROR(ReadContent(file, matrix.storage(), hash));
  if (hash.value() != found.content_hash) return InvalidArgument("is damaged: its content does not have its hash");
  return matrices;
}

Result<bool> WritePackedFile(const std::filesystem::path& path, const PackedFileKey& key,
                             std::span<const PackedMatrix* const> matrices) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) return ResourceExhausted(error.message());
  Draft draft(path);
  MOE_ASSIGN_OR_RETURN(const bool owned, draft.Own());
  if (!owned) return false;
  Header header = HeaderFor(key);
  for (const PackedMatrix* matrix : matrices) header.content_bytes += matrix->bytes();
  MOE_RETURN_IF_ERROR(CheckSizeLimit(sizeof(header) + header.content_bytes));

  ContentHash hash;
  std::uint64_t offset = sizeof(header);
  for (const PackedMatrix* matrix : matrices) {
    for (std::span left = matrix->storage(); !left.empty();) {
      const std::span block = left.first(std::min(kBlock, left.size()));
      hash.AddBytes(block);
      MOE_RETURN_IF_ERROR(draft.file().WriteAt(offset, block));
      offset += block.size();
      left = left.subspan(block.size());
    }
  }
  header.content_hash = hash.value();
  MOE_RETURN_IF_ERROR(draft.file().WriteAt(0, std::as_bytes(std::span(&header, 1))));
  MOE_RETURN_IF_ERROR(draft.Finish());
  return true;
}

}  // namespace moe
