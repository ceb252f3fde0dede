#include "bench/transport/raw_grpc.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/aligned_buffer.h"

namespace moe {
namespace {

constexpr const char* kMethod = "/moe.bench.Raw/Exchange";
constexpr std::chrono::seconds kConnectTimeout{10};
constexpr int kUnlimited = -1;  // as gRPC counts messages; memory bounds them here

// Completions say which operation of which stream they are of; one of each kind is in flight at most.
void* Tag(std::size_t number) { return reinterpret_cast<void*>(number + 1); }

// A message that refers to `bytes`, which outlive its sending, without a copy.
grpc::ByteBuffer Message(std::span<std::byte> bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE);
  return grpc::ByteBuffer(&slice, 1);
}

// Written once: pages that nobody has touched would all be one page of zeros, and stay in the cache.
AlignedBuffer<std::byte> WrittenBytes(std::size_t size) {
  AlignedBuffer<std::byte> bytes(size);
  std::ranges::fill(bytes.span(), std::byte{1});
  return bytes;
}

// Everything has been cancelled; what completes now is thrown away.
void Drain(grpc::CompletionQueue& queue) {
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) continue;
}

class Router final : public RouterPath {
 public:
  static Result<std::unique_ptr<RouterPath>> Connect(const std::vector<std::string>& addresses,
                                                     const ExchangeBytes& largest) {
    auto router = std::make_unique<Router>(largest);
    for (const std::string& address : addresses) MOE_RETURN_IF_ERROR(router->Add(address));
    MOE_RETURN_IF_ERROR(router->Await(addresses.size()));
    return std::unique_ptr<RouterPath>(std::move(router));
  }

  explicit Router(const ExchangeBytes& largest) : largest_(largest) {}

  ~Router() override {
    for (Stream& stream : streams_) stream.context->TryCancel();
    Drain(queue_);
  }

  std::string_view name() const override { return "raw_grpc"; }

  Status Exchange(const ExchangeBytes& bytes, int workers) override {
    const auto peers = static_cast<std::size_t>(workers);
    for (std::size_t w = 0; w < peers; ++w) streams_[w].call->Read(&streams_[w].reply, Tag(w));
    for (std::size_t w = 0; w < peers; ++w) {
      const grpc::ByteBuffer message = Message(streams_[w].request.span().first(bytes.request));
      streams_[w].call->Write(message, Tag(streams_.size() + w));
    }
    MOE_RETURN_IF_ERROR(Await(2 * peers));
    for (std::size_t w = 0; w < peers; ++w) {
      if (const std::size_t arrived = streams_[w].reply.Length(); arrived != bytes.reply)
        return Internal("raw gRPC worker at ", streams_[w].address, " replied with ", arrived, " bytes instead of ",
                        bytes.reply);
    }
    return Status::Ok();
  }

 private:
  struct Stream {
    std::string address;
    AlignedBuffer<std::byte> request;
    grpc::ByteBuffer reply;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
  };

  /// Connects to the next worker and begins its stream, which Await waits for.
  Status Add(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kUnlimited);
    const auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + kConnectTimeout))
      return Unavailable("raw gRPC worker at ", address, " cannot be reached");
    Stream& stream = streams_.emplace_back(Stream{.address = address, .request = WrittenBytes(largest_.request)});
    stream.context = std::make_unique<grpc::ClientContext>();
    stream.call = grpc::GenericStub(channel).PrepareCall(stream.context.get(), kMethod, &queue_);
    stream.call->StartCall(Tag(streams_.size() - 1));
    return Status::Ok();
  }

  /// So many completions, in any order.
  Status Await(std::size_t completions) {
    for (; completions > 0; --completions) {
      void* tag = nullptr;
      bool ok = false;
      MOE_CHECK(queue_.Next(&tag, &ok), "a queue that is not shut down has a next event");
      const std::size_t number = reinterpret_cast<std::size_t>(tag) - 1;
      if (!ok)
        return Unavailable("the stream to raw gRPC worker at ", streams_[number % streams_.size()].address, " ended");
    }
    return Status::Ok();
  }

  const ExchangeBytes largest_;
  grpc::CompletionQueue queue_;
  std::vector<Stream> streams_;  // by worker
};

class Worker final : public RawGrpcWorker {
 public:
  explicit Worker(const ExchangeBytes& largest) : reply_(WrittenBytes(largest.reply)) {}

  ~Worker() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());  // cancels the stream
    Drain(*queue_);
  }

  Status Start(const std::string& listen) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(kUnlimited);
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) return Unavailable("raw gRPC: cannot listen on ", listen);
    address_ = listen.starts_with("unix-abstract:") ? listen : Cat(listen.substr(0, listen.rfind(':')), ":", port);
    service_.RequestCall(&context_, &call_, queue_.get(), queue_.get(), Tag(0));
    return Status::Ok();
  }

  const std::string& address() const override { return address_; }

  Status Accept() override {
    if (!accepted_) MOE_RETURN_IF_ERROR(Await());
    accepted_ = true;
    return Status::Ok();
  }

  Status Answer(const ExchangeBytes& bytes) override {
    MOE_RETURN_IF_ERROR(Accept());
    call_.Read(&request_, Tag(0));
    MOE_RETURN_IF_ERROR(Await());
    if (request_.Length() != bytes.request)
      return Internal("raw gRPC: a request of ", request_.Length(), " bytes arrived instead of ", bytes.request);
    call_.Write(Message(reply_.span().first(bytes.reply)), Tag(0));
    return Await();
  }

 private:
  /// The one operation in flight.
  Status Await() {
    void* tag = nullptr;
    bool ok = false;
    MOE_CHECK(queue_->Next(&tag, &ok), "a queue that is not shut down has a next event");
    return ok ? Status::Ok() : Unavailable("raw gRPC: the router has left");
  }

  AlignedBuffer<std::byte> reply_;
  grpc::ByteBuffer request_;
  grpc::AsyncGenericService service_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter call_{&context_};
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  bool accepted_ = false;
};

}  // namespace

Result<std::unique_ptr<RawGrpcWorker>> StartRawGrpcWorker(const std::string& listen, const ExchangeBytes& largest) {
  auto worker = std::make_unique<Worker>(largest);
  MOE_RETURN_IF_ERROR(worker->Start(listen));
  return std::unique_ptr<RawGrpcWorker>(std::move(worker));
}

Result<std::unique_ptr<RouterPath>> ConnectRawGrpcRouter(const std::vector<std::string>& addresses,
                                                         const ExchangeBytes& largest) {
  return Router::Connect(addresses, largest);
}

}  // namespace moe
