// Expected failures as values. A message is one sentence that names the thing, the value and what was allowed.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/text.h"

namespace moe {

/// The subset of gRPC's canonical codes that this project uses; rpc/status_mapping.h holds the one mapping.
enum class StatusCode {
  kOk,
  kInvalidArgument,
  kNotFound,
  kResourceExhausted,
  kDeadlineExceeded,
  kCancelled,
  kUnavailable,
  kUnimplemented,
  kInternal,
  kFailedPrecondition,
};

inline constexpr StatusCode kLastStatusCode = StatusCode::kFailedPrecondition;

std::string_view Name(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return {}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  /// The same failure, with `context` and ": " before its message.
  Status WithContext(std::string_view context) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

template <typename... Parts>
Status InvalidArgument(const Parts&... parts) {
  return {StatusCode::kInvalidArgument, Cat(parts...)};
}
template <typename... Parts>
Status NotFound(const Parts&... parts) {
  return {StatusCode::kNotFound, Cat(parts...)};
}
template <typename... Parts>
Status ResourceExhausted(const Parts&... parts) {
  return {StatusCode::kResourceExhausted, Cat(parts...)};
}
template <typename... Parts>
Status DeadlineExceeded(const Parts&... parts) {
  return {StatusCode::kDeadlineExceeded, Cat(parts...)};
}
template <typename... Parts>
Status Cancelled(const Parts&... parts) {
  return {StatusCode::kCancelled, Cat(parts...)};
}
template <typename... Parts>
Status Unavailable(const Parts&... parts) {
  return {StatusCode::kUnavailable, Cat(parts...)};
}
template <typename... Parts>
Status Unimplemented(const Parts&... parts) {
  return {StatusCode::kUnimplemented, Cat(parts...)};
}
template <typename... Parts>
Status FailedPrecondition(const Parts&... parts) {
  return {StatusCode::kFailedPrecondition, Cat(parts...)};
}
template <typename... Parts>
Status Internal(const Parts&... parts) {
  return {StatusCode::kInternal, Cat(parts...)};
}

/// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    MOE_CHECK(!status_.ok(), "a Result without a value needs a failure");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& operator*() & {
    MOE_CHECK(ok(), status_.message());
    return *value_;
  }
  const T& operator*() const& {
    MOE_CHECK(ok(), status_.message());
    return *value_;
  }
  T&& operator*() && {
    MOE_CHECK(ok(), status_.message());
    return std::move(*value_);
  }
  T* operator->() { return &**this; }
  const T* operator->() const { return &**this; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace moe

#define MOE_CONCAT_INNER(a, b) a##b
#define MOE_CONCAT(a, b) MOE_CONCAT_INNER(a, b)

#define MOE_RETURN_IF_ERROR(expression)                                               \
  do {                                                                                \
    if (::moe::Status moe_status = (expression); !moe_status.ok()) return moe_status; \
  } while (false)

/// MOE_ASSIGN_OR_RETURN(auto x, Call()): x is Call()'s value, or this function returns its failure.
#define MOE_ASSIGN_OR_RETURN(declaration, expression) \
  MOE_ASSIGN_OR_RETURN_INNER(MOE_CONCAT(moe_result_, __LINE__), declaration, expression)
#define MOE_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                       \
  if (!result.ok()) return result.status();                         \
  declaration = *std::move(result)
