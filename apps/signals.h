// What SIGTERM, SIGINT and SIGUSR1 mean to a rank of moe_serve.
#pragma once

#include <functional>
#include <mutex>
#include <thread>

namespace moe {

/// Installs the handlers (before MPI starts, which would install its own) and ignores SIGPIPE. Workers leave it at
/// that: they end when the router says so. Under a launcher, the kernel kills this process when the launcher dies, so
/// that nothing stays behind.
void InstallSignalHandlers(bool launched);

/// Tells the router: once of the first signal, also one that came before, and once of the second.
class SignalWatcher {
 public:
  struct Callbacks {
    std::function<void()> first;
    std::function<void()> second;
  };
  explicit SignalWatcher(Callbacks callbacks);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Run();

  const Callbacks callbacks_;
  std::thread thread_;
};

}  // namespace moe
