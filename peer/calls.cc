#include "peer/calls.h"

#include <exception>
#include <utility>

#include "peer/bytes.h"
#include "peer/json_text.h"

namespace snow::peer {
namespace {

constexpr std::string_view kService = "calls";
// Parsed, JSON takes many times its length; what is long goes as attachment.
constexpr size_t kMaxJsonBytes = size_t{8} << 20;
// An idle caller is let go after that; its pool has dropped the connection long before.
constexpr int kIdleMs = 300'000;
constexpr int kAnswerMs = 30'000;  // to send an answer to a caller that reads

void put_json(Writer& out, const nlohmann::json& json) {
  const std::string text = to_text(json);
  out.number(text.size(), 4);
  out.text(text);
}

Result<Message> get_message(Reader& in) {
  const auto length = in.number(4);
  const auto text = length ? in.text(static_cast<size_t>(*length)) : std::nullopt;
  if (!text) return fail(Code::corrupt, "a call's message ends early");
  if (text->size() > kMaxJsonBytes) {
    return fail(Code::invalid, "a call's JSON of {} bytes, where {} are the limit", text->size(),
                kMaxJsonBytes);
  }
  Message message;
  SNOW_ASSIGN(message.json, parse_json(*text));
  message.bytes.assign(in.rest().begin(), in.rest().end());
  return message;
}

}  // namespace

std::vector<std::byte> encode_call(std::string_view method, const nlohmann::json& json) {
  Writer out;
  out.number(method.size(), 1);
  out.text(method);
  put_json(out, json);
  return out.take();
}

std::vector<std::byte> encode_answer(const nlohmann::json& json) {
  Writer out;
  put_json(out, json);
  return out.take();
}

Result<Request> decode_call(std::span<const std::byte> payload) {
  Reader in(payload);
  const auto method = in.short_text();
  if (!method || !is_plain_name(*method)) return fail(Code::corrupt, "a call without a method");
  Request request;
  request.method = *method;
  SNOW_ASSIGN(request.argument, get_message(in));
  return request;
}

Result<Message> decode_answer(std::span<const std::byte> payload) {
  Reader in(payload);
  return get_message(in);
}

Result<Message> call(Pool& pool, const std::string& host, std::string_view method,
                     const Message& argument, int timeout_ms) {
  if (!is_plain_name(method)) return fail(Code::invalid, "method '{}': no such name", method);
  const Deadline deadline(timeout_ms);
  const auto head = encode_call(method, argument.json);
  SNOW_ASSIGN(Lease lease, pool.take(host, kService, deadline.left_ms()));
  auto sent = lease->send(kCall, head, argument.bytes, deadline.left_ms());
  if (!sent && lease.reused() && sent.error().code == Code::unavailable) {
    lease.drop();
    SNOW_ASSIGN(lease, pool.take_new(host, kService, deadline.left_ms()));
    sent = lease->send(kCall, head, argument.bytes, deadline.left_ms());
  }
  if (!sent) return within(method, std::move(sent).error());
  auto frame = lease->receive(deadline.left_ms());
  if (!frame) {
    // The remote's own words are left alone; a failure of the connection says in what.
    if (!lease->broken()) return tl::unexpected<Error>(std::move(frame).error());
    return within(method, std::move(frame).error());
  }
  if (frame->type != kAnswer) {
    lease.drop();
    return fail(Code::corrupt, "{}: host '{}': a frame of type {} for an answer", method, host,
                frame->type);
  }
  auto message = decode_answer(frame->payload);
  if (!message) return within(fmt::format("{}: host '{}'", method, host), message.error());
  return message;
}

void Calls::add(std::string name, Method method) {
  methods_.insert_or_assign(std::move(name), std::move(method));
}

Server::Service Calls::service() const {
  return [this](Connection& connection) { serve(connection); };
}

Result<Message> Calls::answer(const std::string& from_host,
                              std::span<const std::byte> request) const {
  SNOW_ASSIGN(const Request asked, decode_call(request));
  const auto found = methods_.find(asked.method);
  if (found == methods_.end()) {
    return fail(Code::not_found, "method '{}': this host has none; is it an older version?",
                asked.method);
  }
  try {
    return found->second(from_host, asked.argument);
  } catch (const std::exception& error) {
    return fail(Code::invalid, "method '{}': {}", asked.method, error.what());
  }
}

void Calls::serve(Connection& connection) const {
  std::vector<std::byte> request;
  for (;;) {
    const auto ready = connection.wait(kIdleMs);
    if (!ready || !*ready) return;
    const auto type = connection.receive_into(request, kAnswerMs);
    if (!type || *type != kCall) return;
    const auto answered = answer(connection.host(), request);
    const auto sent = answered ? connection.send(kAnswer, encode_answer(answered->json),
                                                 answered->bytes, kAnswerMs)
                               : connection.send_error(answered.error(), kAnswerMs);
    // Too long for a frame breaks nothing, but the caller waits for something.
    if (!sent && (connection.broken() || !connection.send_error(sent.error(), kAnswerMs))) return;
    if (request.capacity() > kMaxStrangerBytes) std::vector<std::byte>().swap(request);
  }
}

}  // namespace snow::peer
