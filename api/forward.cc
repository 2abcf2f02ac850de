#include "api/forward.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "api/forward_request.h"
#include "peer/deadline.h"
#include "peer/json_text.h"

namespace snow::forward {
namespace {

constexpr int kSendMs = 5000;
constexpr size_t kMaxListBytes = size_t{64} << 20;  // of one host
constexpr size_t kMostAtOnce = 64;                  // hosts that are asked at the same time

// A host's answer to a question that every host can answer at once.
struct Answer {
  std::string host;
  Result<Reply> reply = fail(Code::timed_out, "not asked in time");
};

// The body whole, also of a streamed reply.
Result<Reply> ask(const std::shared_ptr<Neighbours>& neighbours, const std::string& host,
                  const Call& call, const peer::Deadline& deadline,
                  const std::atomic<bool>& stopping) {
  SNOW_ASSIGN(const auto passed,
              Passed::send(neighbours, host, call, false, std::max(deadline.left_ms(), 1)));
  SNOW_ASSIGN(Head head, passed->reply(std::max(deadline.left_ms(), 1), stopping));
  Reply reply;
  reply.status = head.status;
  reply.body = std::move(head.body);
  if (head.kind == Kind::whole) return reply;
  if (head.kind != Kind::stream) {
    return fail(Code::corrupt, "host '{}': not an answer to a look", passed->host_name());
  }
  for (;;) {
    SNOW_ASSIGN(const std::string piece, passed->piece(std::max(deadline.left_ms(), 1), stopping));
    if (piece.empty()) return reply;
    if (reply.body.size() + piece.size() > kMaxListBytes) {
      return fail(Code::corrupt, "host '{}': its answer is longer than {} bytes",
                  passed->host_name(), kMaxListBytes);
    }
    reply.body += piece;
  }
}

std::vector<Answer> ask_all(const std::shared_ptr<Neighbours>& neighbours, const Call& call,
                            const std::atomic<bool>& stopping) {
  const peer::Deadline deadline(kLookMs);
  std::vector<Answer> answers;
  for (std::string& host : neighbours->live()) answers.emplace_back().host = std::move(host);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = 0; (i = next++) < answers.size() && deadline.left_ms() > 0;) {
      answers[i].reply = ask(neighbours, answers[i].host, call, deadline, stopping);
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(answers.size(), kMostAtOnce); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return answers;
}

// Of an answer's body; an empty optional if it is no array of objects.
std::optional<nlohmann::json> objects_in(const Reply& reply) {
  if (reply.status != 200) return std::nullopt;
  auto json = peer::parse_json(reply.body);
  if (!json || !json->is_array()) return std::nullopt;
  const bool good =
      std::all_of(json->begin(), json->end(), [](const auto& one) { return one.is_object(); });
  if (!good) return std::nullopt;
  return *std::move(json);
}

std::string text_in(const nlohmann::json& object, const char* field) {
  const auto at = object.find(field);
  return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
}

// What every host can be asked to find out whether it has what the call is about.
Call question_of(const Call& call, Reach reach, const std::string& name) {
  Call question;
  question.method = "GET";
  question.path = reach == Reach::vm ? "/v1/vms/" + name : "/v1/tickets";
  question.caller = call.caller;
  return question;
}

bool has_it(const Reply& reply, Reach reach, const std::string& name) {
  if (reach == Reach::vm) return reply.status != http_status(Code::not_found);
  const auto tickets = objects_in(reply);
  return tickets && std::any_of(tickets->begin(), tickets->end(), [&](const auto& ticket) {
           return text_in(ticket, "ticket") == name;
         });
}

std::string json_body(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// An upload that the host takes which has the VM.
class PassedUpload : public Upload {
 public:
  PassedUpload(std::unique_ptr<Passed> passed, const std::atomic<bool>& stopping)
      : passed_(std::move(passed)), stopping_(stopping) {}

  // Before anything is written: the host takes it, or says why it does not.
  Result<void> begin() {
    SNOW_ASSIGN(const Head head, passed_->reply(-1, stopping_));
    return head.kind == Kind::upload ? Result<void>() : error_of(head);
  }

  Result<void> write(std::string_view bytes) override {
    if (!passed_->answered()) return passed_->write(bytes, stopping_);
    SNOW_ASSIGN(const Head head, passed_->reply(-1, stopping_));
    return error_of(head);
  }
  Reply finish() override {
    if (auto ended = passed_->end(); !ended) return error_reply(ended.error());
    auto head = passed_->reply(-1, stopping_);
    if (!head) return error_reply(head.error());
    Reply reply;
    reply.status = head->status;
    reply.type = head->type;
    reply.body = std::move(head->body);
    return reply;
  }

 private:
  [[nodiscard]] Result<void> error_of(const Head& head) const {
    const auto json = peer::parse_json(head.body);
    if (!json || !json->is_object() || head.status < 400) {
      return fail(Code::corrupt, "host '{}': ended an upload without an error",
                  passed_->host_name());
    }
    return tl::unexpected<Error>(
        Error{code_from_name(text_in(*json, "code")), text_in(*json, "message")});
  }

  const std::unique_ptr<Passed> passed_;
  const std::atomic<bool>& stopping_;
};

}  // namespace

bool Forwarder::is_here(const Call& call) const {
  std::string name;
  if (reach_of(call, name) == Reach::vm) return host_.inspect(name).has_value();
  const auto tickets = host_.tickets();
  return tickets && std::any_of(tickets->begin(), tickets->end(), [&](const auto& ticket) {
           return text_in(ticket, "ticket") == name;
         });
}

Result<std::string> Forwarder::holder_of(const std::shared_ptr<Neighbours>& neighbours,
                                         const Call& call, const Error& local) const {
  std::string name;
  const Reach reach = reach_of(call, name);
  const auto answers = ask_all(neighbours, question_of(call, reach, name), stopping_);
  std::vector<std::string> holders, names, silent;
  for (const Answer& answer : answers) {
    if (!answer.reply) {
      silent.push_back(neighbours->name_of(answer.host));
    } else if (has_it(*answer.reply, reach, name)) {
      holders.push_back(answer.host);
      names.push_back(neighbours->name_of(answer.host));
    }
  }
  if (holders.size() == 1) return holders[0];
  if (holders.size() > 1) {
    return fail(Code::invalid, "VM '{}': hosts {} have one of that name; give its id (`snow ps`)",
                name, fmt::join(names, ", "));
  }
  if (!silent.empty()) {
    return fail(Code::unavailable, "{} '{}': not on the hosts that answer; no answer from {}",
                reach == Reach::vm ? "VM" : "ticket", name, fmt::join(silent, ", "));
  }
  return tl::unexpected<Error>(local);
}

Result<Reply> Forwarder::answer(const Call& call, Result<Reply> local) const {
  const auto neighbours = call.forwarded ? nullptr : host_.neighbours();
  std::string name;
  const Reach reach = reach_of(call, name);
  if (!neighbours || reach == Reach::here) return local;
  if (reach == Reach::list || reach == Reach::host) {
    if (!local) return local;
    return reach == Reach::list ? list(neighbours, call, *std::move(local))
                                : look_at_host(neighbours, call, *std::move(local));
  }
  // A file or program that a VM of ours does not have is not found either.
  if (local || local.error().code != Code::not_found || is_here(call)) return local;
  SNOW_ASSIGN(const std::string host, holder_of(neighbours, call, local.error()));
  SNOW_ASSIGN(std::shared_ptr<Passed> passed, Passed::send(neighbours, host, call, false, kSendMs));
  return take_reply(std::move(passed), stopping_);
}

Result<std::unique_ptr<Upload>> Forwarder::upload(const Call& call, const Error& local) const {
  const auto neighbours = call.forwarded ? nullptr : host_.neighbours();
  if (!neighbours || local.code != Code::not_found || is_here(call)) {
    return tl::unexpected<Error>(local);
  }
  SNOW_ASSIGN(const std::string host, holder_of(neighbours, call, local));
  SNOW_ASSIGN(auto passed, Passed::send(neighbours, host, call, true, kSendMs));
  auto upload = std::make_unique<PassedUpload>(std::move(passed), stopping_);
  SNOW_TRY(upload->begin());
  return std::unique_ptr<Upload>(std::move(upload));
}

Result<Reply> Forwarder::list(const std::shared_ptr<Neighbours>& neighbours, const Call& call,
                              Reply local) const {
  auto all = objects_in(local);
  if (!all) return local;
  const char* id = call.path == "/v1/vms" ? "id" : "ticket";
  std::set<std::string> known;
  for (const auto& one : *all) known.insert(text_in(one, id));
  for (Answer& answer : ask_all(neighbours, call, stopping_)) {
    const auto theirs = answer.reply ? objects_in(*answer.reply) : std::nullopt;
    if (!theirs) {
      local.missing.push_back(neighbours->name_of(answer.host));
      continue;
    }
    for (const auto& one : *theirs) {
      if (known.insert(text_in(one, id)).second) all->push_back(one);
    }
  }
  std::stable_sort(all->begin(), all->end(), [](const auto& a, const auto& b) {
    return text_in(a, "created") < text_in(b, "created");
  });
  local.body = json_body(*all);
  return local;
}

// Only the host itself knows how its exchange does.
Result<Reply> Forwarder::look_at_host(const std::shared_ptr<Neighbours>& neighbours,
                                      const Call& call, Reply local) const {
  auto host = peer::parse_json(local.body);
  if (!host || !host->is_object() || host->value("self", false)) return local;
  const std::string id = text_in(*host, "id");
  const auto live = neighbours->live();
  if (std::find(live.begin(), live.end(), id) == live.end()) return local;
  Call question = call;
  question.path = "/v1/hosts/" + id;
  const auto reply = ask(neighbours, id, question, peer::Deadline(kLookMs), stopping_);
  const auto theirs = reply ? peer::parse_json(reply->body) : Result<nlohmann::json>();
  if (!theirs || !theirs->is_object() || !theirs->contains("exchange")) return local;
  (*host)["exchange"] = (*theirs)["exchange"];
  local.body = json_body(*host);
  return local;
}

}  // namespace snow::forward
