#include "core/shared_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::size_t kBytes = 10'000;

std::string Refusal(const std::string& name, StatusCode code, std::size_t bytes = kBytes) {
  const Result<SharedMemory> opened = SharedMemory::Open(name, bytes);
  EXPECT_EQ(opened.status().code(), code);
  return opened.status().message();
}

// The name of a file of this process, as of memory.
std::string NameOf(int file, const std::string& like) {
  struct stat is {};
  EXPECT_EQ(fstat(file, &is), 0);
  return Cat(like.substr(0, like.find('/')), "/", getpid(), "/", file, "/", is.st_ino);
}

TEST(SharedMemory, IsZeroedAndSeenByWhoeverOpensIt) {
  const Result<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ(made->span().size(), kBytes);
  EXPECT_TRUE(std::ranges::all_of(made->span(), [](std::byte byte) { return byte == std::byte{0}; }));
  const Result<SharedMemory> opened = SharedMemory::Open(made->name(), kBytes);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  made->span()[kBytes - 1] = std::byte{7};
  EXPECT_EQ(opened->span()[kBytes - 1], std::byte{7});
  opened->span()[0] = std::byte{8};
  EXPECT_EQ(made->span()[0], std::byte{8});
}

TEST(SharedMemory, IsSharedBetweenProcesses) {
  const Result<SharedMemory> made = SharedMemory::Create(kBytes);
  ASSERT_TRUE(made.ok());
  const pid_t child = fork();
  if (child == 0) {
    const Result<SharedMemory> opened = SharedMemory::Open(made->name(), kBytes);
    if (opened.ok()) opened->span()[5] = std::byte{9};
    _exit(opened.ok() ? 0 : 1);
  }
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(made->span()[5], std::byte{9});
}

TEST(SharedMemory, OutlivesItsMakerWhereItIsOpenAndIsNotToBeHadAnyMore) {
  std::optional<SharedMemory> made = *SharedMemory::Create(kBytes);
  const std::string name = made->name();
  const Result<SharedMemory> opened = SharedMemory::Open(name, kBytes);
  made.reset();
  ASSERT_TRUE(opened.ok());
  opened->span()[kBytes - 1] = std::byte{1};
  EXPECT_THAT(Refusal(name, StatusCode::kNotFound), HasSubstr("/proc/"));
}

TEST(SharedMemory, MayBeMoved) {
  SharedMemory made = *SharedMemory::Create(kBytes);
  const std::string name = made.name();
  SharedMemory other = std::move(made);
  made = *SharedMemory::Create(1);
  EXPECT_TRUE(SharedMemory::Open(name, kBytes).ok());
  other = std::move(made);
  EXPECT_EQ(other.span().size(), 1u);
}

TEST(SharedMemory, NamesThatAreNoneAreRefused) {
  for (const char* name : {"", "boot", "boot/1/2", "boot/1/2/3/4", "boot/1/2/x", "boot/1//3", "boot/-1/2/3",
                           "boot/1/2/3 ", "boot/99999999999999999999/2/3"})
    EXPECT_THAT(Refusal(name, StatusCode::kInvalidArgument), HasSubstr(Cat("\"", name, "\" is no name")));
}

TEST(SharedMemory, AnotherMachinesIsNotToBeHad) {
  EXPECT_THAT(Refusal("boot/1/2/3", StatusCode::kNotFound), HasSubstr("another machine's"));
}

TEST(SharedMemory, WhatElseIsOpenThereIsNotTakenForIt) {
  const SharedMemory made = *SharedMemory::Create(kBytes);
  const std::string name = made.name();
  EXPECT_THAT(Refusal(name, StatusCode::kInvalidArgument, kBytes + 1), HasSubstr("has 10000 bytes instead of 10001"));
  EXPECT_THAT(Refusal(name + "0", StatusCode::kNotFound), HasSubstr("has gone"));
  const int file = memfd_create("moe-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(file, kBytes), 0);
  EXPECT_THAT(Refusal(NameOf(file, name), StatusCode::kInvalidArgument), HasSubstr("could change its length"));
  close(file);
  // A file on a disk can have no seals.
  const std::string path = Cat("shared_memory_test.", getpid());
  const int plain = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(unlink(path.c_str()), 0);
  ASSERT_EQ(ftruncate(plain, kBytes), 0);
  EXPECT_THAT(Refusal(NameOf(plain, name), StatusCode::kInvalidArgument), HasSubstr("could change its length"));
  close(plain);
  const int device = open("/dev/null", O_RDWR | O_CLOEXEC);
  EXPECT_THAT(Refusal(NameOf(device, name), StatusCode::kNotFound), HasSubstr("has gone"));
  close(device);
}

}  // namespace
}  // namespace moe
