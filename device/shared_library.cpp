#include "device/shared_library.h"

#include <dlfcn.h>

namespace moe {

Result<SharedLibrary> SharedLibrary::Open(const std::vector<std::string>& names) {
  MOE_CHECK(!names.empty(), "a library needs a name");
  std::string complaint;
  for (const std::string& name : names) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); handle != nullptr) {
      return SharedLibrary(handle, name);
    }
    const char* text = dlerror();
    if (complaint.empty()) complaint = text == nullptr ? name + " cannot be loaded" : text;
  }
  return Unavailable(complaint);
}

Result<void*> SharedLibrary::Find(const char* function) const {
  void* address = dlsym(handle_, function);
  if (address == nullptr) return NotFound(name_, " has no function ", function);
  return address;
}

}  // namespace moe
