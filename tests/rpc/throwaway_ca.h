// Certificates for a test, made by the openssl program and gone with the test.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "core/check.h"
#include "core/text.h"
#include "rpc/tls.h"
#include "tests/temporary_folder.h"

namespace moe {

class ThrowawayCa {
 public:
  /// Makes a CA, and certificates "server" and "client" for 127.0.0.1 and localhost.
  explicit ThrowawayCa(const std::string& name) {
    Run(Cat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=moe test ", name,
            "' -keyout ca.key -out ca.pem"));
    for (const char* who : {"server", "client"}) {
      Run(Cat("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=", who, " -keyout ", who,
              ".key -out ", who, ".csr"));
      Run(Cat("echo subjectAltName=IP:127.0.0.1,DNS:localhost > ", who, ".ext && openssl x509 -req -days 2 -in ", who,
              ".csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile ", who, ".ext -out ", who, ".pem"));
    }
  }

  std::filesystem::path ca() const { return folder_.path() / "ca.pem"; }
  TlsFiles Files(const std::string& who, bool with_ca) const {
    return {.certificate = folder_.path() / (who + ".pem"),
            .key = folder_.path() / (who + ".key"),
            .ca = with_ca ? ca() : std::filesystem::path()};
  }

 private:
  void Run(const std::string& command) const {
    const std::string whole = Cat("cd ", folder_.path().string(), " && (", command, ") > log 2>&1");
    MOE_CHECK(std::system(whole.c_str()) == 0, "openssl makes no certificate");
  }

  const TemporaryFolder folder_;
};

}  // namespace moe
