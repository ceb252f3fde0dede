// A library that is looked for when it is first needed, so that a program starts on machines that do not have it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace moe {

/// Stays loaded for the life of the process: what CUDA's libraries start in the background does not survive unloading.
class SharedLibrary {
 public:
  /// The first of `names` that the loader finds; UNAVAILABLE, with its complaint about the first, when there is none.
  static Result<SharedLibrary> Open(const std::vector<std::string>& names);

  /// NOT_FOUND naming the function and the library.
  Result<void*> Find(const char* function) const;

  /// *function = Find(name).
  template <typename Function>
  Status Load(const char* name, Function** function) const {
    MOE_ASSIGN_OR_RETURN(void* address, Find(name));
    *function = reinterpret_cast<Function*>(address);
    return Status::Ok();
  }

 private:
  SharedLibrary(void* handle, std::string name) : handle_(handle), name_(std::move(name)) {}
  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace moe
