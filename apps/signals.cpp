#include "apps/signals.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "core/check.h"

namespace moe {
namespace {

// The one piece of process-wide state: a handler can reach nothing else. A byte for each signal, and kStop to end the
// watcher.
int signal_pipe[2] = {-1, -1};
constexpr char kSignal = 's';
constexpr char kStop = 'q';

void Write(char byte) {
  const int saved = errno;
  // A full pipe holds thousands of signals already; one more says nothing new.
  [[maybe_unused]] const ssize_t written = write(signal_pipe[1], &byte, 1);
  errno = saved;
}

void OnSignal(int) { Write(kSignal); }

}  // namespace

void InstallSignalHandlers(bool launched) {
  MOE_CHECK(pipe2(signal_pipe, O_CLOEXEC) == 0);
  fcntl(signal_pipe[1], F_SETFL, O_NONBLOCK);
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  if (launched) prctl(PR_SET_PDEATHSIG, SIGKILL);
}

SignalWatcher::SignalWatcher(Callbacks callbacks) : callbacks_(std::move(callbacks)), thread_([this] { Run(); }) {}

SignalWatcher::~SignalWatcher() {
  Write(kStop);
  thread_.join();
}

void SignalWatcher::Run() {
  int seen = 0;
  char byte = 0;
  while (true) {
    const ssize_t count = read(signal_pipe[0], &byte, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count != 1 || byte == kStop) return;
    ++seen;
    if (seen == 1) callbacks_.first();
    if (seen == 2) callbacks_.second();
  }
}

}  // namespace moe
