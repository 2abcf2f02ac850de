// Calls of the guest's programs as the host sees them.
#include "guestlink/session.h"

namespace snow {

using channel::Fields;
using channel::Type;

void LinkSession::answer(CallState& call, const Fields& fields, std::string payload) {
  const Lock lock(mutex_);
  if (call.answered) return;
  const bool more = channel::field(fields, "code") == "ok" &&
                    (!payload.empty() || channel::field(call.fields, "call") == "join");
  const bool sent = !call.gone && send(Type::answer, call.number, fields);
  call.answered = true;  // from here on its payload may follow
  if (!sent || !more) return erase(call);
  call.out = std::move(payload);
  flush();
}

void LinkSession::forget(CallState& call) {
  const Lock lock(mutex_);
  if (!call.answered) erase(call);
}

bool LinkSession::gone(CallState& call) {
  const Lock lock(mutex_);
  return call.gone;
}

namespace {

constexpr size_t kMessageBytes = 4096;

class SessionCall : public GuestCall {
 public:
  SessionCall(std::shared_ptr<LinkSession> session, std::shared_ptr<CallState> state)
      : session_(std::move(session)), state_(std::move(state)) {}
  SessionCall(const SessionCall&) = delete;
  SessionCall& operator=(const SessionCall&) = delete;
  ~SessionCall() override { session_->forget(*state_); }

  [[nodiscard]] const Fields& fields() const override { return state_->fields; }
  [[nodiscard]] uint32_t number() const override { return state_->number; }
  [[nodiscard]] const std::string& payload() const override { return state_->payload; }
  [[nodiscard]] bool gone() const override { return session_->gone(*state_); }

  void answer(Fields results, std::string payload) override {
    results["code"] = "ok";
    bool fits = channel::encode_fields(results).size() <= channel::kMaxPayload;
    for (const auto& [key, value] : results) {
      fits = fits && !key.empty() && key.size() <= 255 && value.size() <= channel::kMaxFieldBytes;
    }
    if (!fits) return refuse({Code::internal, "the answer does not fit into a message"});
    session_->answer(*state_, results, std::move(payload));
  }
  void refuse(const Error& error) override {
    session_->answer(*state_,
                     {{"code", std::string(code_name(error.code))},
                      {"message", error.message.substr(0, kMessageBytes)}},
                     {});
  }

 private:
  const std::shared_ptr<LinkSession> session_;
  const std::shared_ptr<CallState> state_;
};

}  // namespace

std::shared_ptr<GuestCall> make_call(std::shared_ptr<LinkSession> session,
                                     std::shared_ptr<CallState> state) {
  return std::make_shared<SessionCall>(std::move(session), std::move(state));
}

}  // namespace snow
