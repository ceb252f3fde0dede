// TLS of servers and clients by files, in PEM form.
#pragma once

#include <filesystem>
#include <memory>

#include "core/status.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace moe {

/// Without any file: plain connections, for loopback and trusted networks.
struct TlsFiles {
  std::filesystem::path certificate;  // of this end, with its chain
  std::filesystem::path key;          // of that certificate
  std::filesystem::path ca;           // whom the other end's certificate must come from

  bool any() const { return !certificate.empty() || !key.empty() || !ca.empty(); }
};

/// A server needs a certificate and its key; with `ca` it wants a certificate of every client too (mutual TLS). Errors
/// are INVALID_ARGUMENT and name the file. (Callers include <grpcpp/security/server_credentials.h>.)
Result<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files);

/// A client needs `ca`; with a certificate and its key it shows them to the server. (Callers include
/// <grpcpp/security/credentials.h>.)
Result<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files);

}  // namespace moe
