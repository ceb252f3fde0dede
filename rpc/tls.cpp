#include "rpc/tls.h"

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>

namespace moe {
namespace {

constexpr std::uintmax_t kMaxPemBytes = 1 << 20;

// The text of a PEM file that holds a `what`; `marker` is what such a file says.
Result<std::string> ReadPem(const std::filesystem::path& path, std::string_view what, std::string_view marker) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) return InvalidArgument("TLS ", what, " ", path.string(), " cannot be read: ", error.message());
  if (bytes > kMaxPemBytes)
    return InvalidArgument("TLS ", what, " ", path.string(), " has ", bytes, " bytes (at most ", kMaxPemBytes, ")");
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return InvalidArgument("TLS ", what, " ", path.string(), " cannot be read");
  if (text.find(marker) == std::string::npos)
    return InvalidArgument("TLS ", what, " ", path.string(), " is no PEM file with \"", marker, "\"");
  return text;
}

Result<std::string> ReadCertificate(const std::filesystem::path& path, std::string_view what) {
  return ReadPem(path, what, "-----BEGIN CERTIFICATE-----");
}

// Both or none.
struct Identity {
  std::string key;
  std::string certificate;
};

Result<Identity> ReadIdentity(const TlsFiles& files) {
  if (files.certificate.empty() != files.key.empty()) {
    return InvalidArgument("TLS ", files.key.empty() ? "certificate " : "key ",
                           (files.key.empty() ? files.certificate : files.key).string(), " is given without its ",
                           files.key.empty() ? "key" : "certificate");
  }
  Identity identity;
  if (files.certificate.empty()) return identity;
  MOE_ASSIGN_OR_RETURN(identity.certificate, ReadCertificate(files.certificate, "certificate"));
  MOE_ASSIGN_OR_RETURN(identity.key, ReadPem(files.key, "key", "PRIVATE KEY-----"));
  return identity;
}

}  // namespace

Result<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureServerCredentials();
  MOE_ASSIGN_OR_RETURN(const Identity identity, ReadIdentity(files));
  if (identity.key.empty())
    return InvalidArgument("TLS CA ", files.ca.string(), " is given without a certificate and a key of this server");
  grpc::SslServerCredentialsOptions options(files.ca.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_key_cert_pairs.push_back({identity.key, identity.certificate});
  if (!files.ca.empty()) {
    MOE_ASSIGN_OR_RETURN(options.pem_root_certs, ReadCertificate(files.ca, "CA"));
  }
  return grpc::SslServerCredentials(options);
}

Result<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureChannelCredentials();
  MOE_ASSIGN_OR_RETURN(const Identity identity, ReadIdentity(files));
  if (files.ca.empty()) {
    return InvalidArgument("TLS certificate ", files.certificate.string(),
                           " is given without the CA that a server's certificate must come from");
  }
  grpc::SslCredentialsOptions options{.pem_private_key = identity.key, .pem_cert_chain = identity.certificate};
  MOE_ASSIGN_OR_RETURN(options.pem_root_certs, ReadCertificate(files.ca, "CA"));
  return grpc::SslCredentials(options);
}

}  // namespace moe
