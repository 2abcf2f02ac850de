#include "peer/join.h"

#include "base/file.h"
#include "base/log.h"
#include "peer/authority.h"
#include "peer/bytes.h"
#include "peer/certificate.h"
#include "peer/json_text.h"

namespace snow::peer {
namespace {

constexpr int kServeMs = 10'000;  // for the request, and again for the answer

void put_text(Writer& out, std::string_view text) {
  out.number(text.size(), 4);
  out.text(text);
}

bool get_text(Reader& in, std::string& into) {
  const auto length = in.number(4);
  const auto text = length ? in.text(static_cast<size_t>(*length)) : std::nullopt;
  if (text) into = *text;
  return text.has_value();
}

// What came back is checked as if anybody had sent it, then kept.
Result<void> keep(const std::string& folder, const Token& token, const std::string& host,
                  const JoinAnswer& answer) {
  SNOW_ASSIGN(const auto ca, parse_certificate(answer.ca_pem, "the cluster's CA"));
  SNOW_ASSIGN(const auto made, parse_certificate(answer.certificate_pem, "our certificate"));
  SNOW_ASSIGN(const Key key, read_key(folder + "/host-key.pem"));
  if (certificate_hash(ca.get()) != token.ca_hash) {
    return fail(Code::denied, "the authority sent another CA than the token names");
  }
  SNOW_TRY(check_chain(made.get(), ca.get(), "our certificate"));
  if (common_name(made.get()) != host || X509_check_private_key(made.get(), key.get()) != 1) {
    return fail(Code::corrupt, "the authority sent a certificate that is not for this host");
  }
  SNOW_TRY(write_file(folder + "/ca.pem", to_pem(ca.get()), 0600));
  return write_file(folder + "/host.pem", to_pem(made.get()), 0600);
}

Result<Joined> join_at(const Credentials& us, const Address& address, const std::string& folder,
                       const Token& token, const JoinRequest& request, const Deadline& deadline) {
  SNOW_ASSIGN(auto connection,
              Connection::connect(us, address, "", kJoinService, deadline.left_ms()));
  SNOW_TRY(connection->send(kJoin, encode(request), deadline.left_ms()));
  SNOW_ASSIGN(const Frame frame, connection->receive(deadline.left_ms()));
  if (frame.type != kJoined) {
    return fail(Code::corrupt, "{}: a frame of type {} for an answer", connection->name(),
                frame.type);
  }
  SNOW_ASSIGN(const JoinAnswer answer, decode_join_answer(frame.payload));
  Joined joined;
  SNOW_ASSIGN(joined.cluster, parse_json(answer.cluster));
  SNOW_TRY(keep(folder, token, request.host, answer));
  joined.authority_host = connection->host();
  joined.authority_address = address;
  return joined;
}

}  // namespace

std::vector<std::byte> encode(const JoinRequest& request) {
  Writer out;
  out.raw(request.secret);
  out.number(request.host.size(), 1);
  out.text(request.host);
  put_text(out, request.request_pem);
  put_text(out, request.about);
  return out.take();
}

std::vector<std::byte> encode(const JoinAnswer& answer) {
  Writer out;
  put_text(out, answer.certificate_pem);
  put_text(out, answer.ca_pem);
  put_text(out, answer.cluster);
  return out.take();
}

Result<JoinRequest> decode_join_request(std::span<const std::byte> payload) {
  Reader in(payload);
  JoinRequest request;
  const auto secret = in.raw(kSecretBytes);
  const auto host = in.short_text();
  if (!secret || !host || !is_host_id(*host) || !get_text(in, request.request_pem) ||
      !get_text(in, request.about) || !in.rest().empty()) {
    return fail(Code::corrupt, "a malformed request to join");
  }
  std::copy(secret->begin(), secret->end(), request.secret.begin());
  request.host = *host;
  return request;
}

Result<JoinAnswer> decode_join_answer(std::span<const std::byte> payload) {
  Reader in(payload);
  JoinAnswer answer;
  if (!get_text(in, answer.certificate_pem) || !get_text(in, answer.ca_pem) ||
      !get_text(in, answer.cluster) || !in.rest().empty()) {
    return fail(Code::corrupt, "a malformed answer to a request to join");
  }
  return answer;
}

Result<Joined> join(const std::string& folder, std::string_view token_text, const std::string& host,
                    const nlohmann::json& about, int timeout_ms) {
  const Deadline deadline(timeout_ms);
  SNOW_ASSIGN(const Token token, decode_token(token_text));
  JoinRequest request;
  request.secret = token.secret;
  request.host = host;
  request.about = to_text(about);
  SNOW_ASSIGN(request.request_pem, make_request(folder, host));
  SNOW_ASSIGN(const auto us, Credentials::joining(token.ca_hash));
  Result<Joined> joined;
  for (size_t i = 0; i < token.addresses.size(); ++i) {
    // Each address that is left gets an equal share of the time that is left.
    const int left_ms = deadline.left_ms();
    const auto shares = static_cast<int>(token.addresses.size() - i);
    const Deadline mine(left_ms < 0 ? kForever : left_ms / shares);
    joined = join_at(*us, token.addresses[i], folder, token, request, mine);
    if (joined) return joined;
    const Code code = joined.error().code;
    if (code != Code::unavailable && code != Code::timed_out) break;
  }
  return within("cannot join the cluster", std::move(joined).error());
}

JoinService::JoinService(std::string folder, TokenStore& tokens, Admit admit)
    : folder_(std::move(folder)), tokens_(tokens), admit_(std::move(admit)) {}

void JoinService::add_to(Server& server) {
  server.add(
      std::string(kJoinService), [this](Connection& connection) { serve(connection); },
      Server::Open::to_all);
}

void JoinService::serve(Connection& connection) {
  const auto frame = connection.receive(kServeMs);
  if (!frame || frame->type != kJoin) return;
  const auto answered = answer(frame->payload);
  if (answered) {
    (void)connection.send(kJoined, *answered, kServeMs);
  } else {
    log_warn("{}: not let into the cluster: {}", connection.name(), answered.error().message);
    (void)connection.send_error(answered.error(), kServeMs);
  }
  // The peer closes: an answer is not lost to a reset.
  (void)connection.wait(kServeMs);
}

Result<std::vector<std::byte>> JoinService::answer(std::span<const std::byte> payload) {
  SNOW_ASSIGN(const JoinRequest request, decode_join_request(payload));
  // Nothing that a stranger sends is worked on before its secret was found good.
  SNOW_TRY(tokens_.check_secret(request.secret));
  SNOW_ASSIGN(const Key key, key_of_request(request.request_pem));
  SNOW_ASSIGN(const std::string key_hash, public_key_hash(key.get()));
  SNOW_TRY(tokens_.check(request.secret, key_hash));
  SNOW_ASSIGN(const nlohmann::json about, parse_json(request.about));
  JoinAnswer answer;
  // Who comes with the same token at the same time waits, and is not even admitted.
  SNOW_TRY(tokens_.spend(request.secret, request.host, key_hash, [&]() -> Result<void> {
    SNOW_ASSIGN(answer.certificate_pem, sign_request(folder_, request.host, request.request_pem));
    try {
      SNOW_ASSIGN(const nlohmann::json cluster, admit_(request.host, about));
      answer.cluster = to_text(cluster);
    } catch (const std::exception& error) {
      return fail(Code::invalid, "what host '{}' says about itself: {}", request.host,
                  error.what());
    }
    return {};
  }));
  SNOW_ASSIGN(answer.ca_pem, read_file(folder_ + "/ca.pem", kMaxPemBytes));
  return encode(answer);
}

}  // namespace snow::peer
