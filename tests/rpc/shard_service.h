// A service for tests of servers, and a call to it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "moe/v1/worker.grpc.pb.h"

namespace moe {

/// Says that it is rank 5.
class ShardService : public v1::ExpertWorker::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetShard(grpc::CallbackServerContext* context, const v1::GetShardRequest* /*request*/,
                                     v1::ShardDescription* response) override {
    response->set_rank(5);
    auto* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

/// What a call to the ShardService at `address` ends in; INTERNAL when the answer is not rank 5.
inline grpc::Status CallShard(const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials =
                                                              grpc::InsecureChannelCredentials()) {
  const auto stub = v1::ExpertWorker::NewStub(grpc::CreateChannel(address, credentials));
  grpc::ClientContext context;
  // Long enough for any machine; a call that is not answered fails the test in place of hanging it.
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::ShardDescription description;
  grpc::Status status = stub->GetShard(&context, {}, &description);
  if (status.ok() && description.rank() != 5) return {grpc::StatusCode::INTERNAL, "another answer"};
  return status;
}

}  // namespace moe
