// The C functions of snow.h over CallToHost.
#include "guest/libsnow/snow.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>

#include "guest/libsnow/call.h"
#include "guest/libsnow/hierarchy.h"

using snow::channel::field;
using snow::channel::Fields;
using snow::channel::number_field;
using snow::guest::ask_host;
using snow::guest::CallToHost;
using snow::guest::failed;

struct snow_ticket {
  std::string id;
  unsigned granted = 0;
  unsigned vcpus = 1;  // processes in each clone
  bool hierarchical = false;
};

struct snow_results {
  std::vector<snow_result> entries;
  std::vector<std::string> payloads;  // one for each entry
};

namespace {

// What a clone's entry in the answer to join says.
struct JoinedClone {
  unsigned index = 0;
  snow_how how = SNOW_LOST;
  int status = 0;
  size_t size = 0;
};

snow_how how_of(std::string_view name) {
  constexpr const char* kNames[] = {"exited", "killed", "crashed", "lost", "running"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<snow_how>(i);
  }
  return SNOW_LOST;
}

unsigned unsigned_field(const Fields& fields, const std::string& key) {
  const int64_t value = number_field(fields, key).value_or(0);
  return value < 0 ? 0 : static_cast<unsigned>(value);
}

void copy_id(char (&to)[SNOW_ID_BYTES], std::string_view from) {
  const size_t size = from.copy(to, SNOW_ID_BYTES - 1);
  to[size] = '\0';
}

void add_result(snow_results& results, unsigned index, snow_how how, int status,
                std::string payload) {
  results.entries.push_back({index, how, status, nullptr, payload.size()});
  results.payloads.push_back(std::move(payload));
}

// One entry, or one for each process of a hierarchical clone. What died as a machine died with all
// its processes.
void add_clone(snow_results& results, const snow_ticket& ticket, const JoinedClone& clone,
               std::string payload) {
  if (!ticket.hierarchical) {
    return add_result(results, clone.index, clone.how, clone.status, std::move(payload));
  }
  const unsigned first = (clone.index - 1) * ticket.vcpus + 1;
  const auto records = snow::guest::decode_records(payload, ticket.vcpus);
  for (unsigned k = 0; k < ticket.vcpus; ++k) {
    if (clone.how == SNOW_EXITED && records) {
      const auto& record = (*records)[k];
      add_result(results, first + k, static_cast<snow_how>(record.how), record.status,
                 record.payload);
    } else {
      add_result(results, first + k, clone.how == SNOW_EXITED ? SNOW_LOST : clone.how, clone.status,
                 "");
    }
  }
}

}  // namespace

int snow_request_ticket(unsigned n, unsigned flags, snow_ticket** ticket) {
  *ticket = nullptr;
  const bool hierarchical = (flags & SNOW_HIERARCHICAL) != 0;
  if (n == 0) return failed(SNOW_E_INVALID, "a ticket needs at least one clone");
  const bool apart = (flags & SNOW_SPREAD) != 0, here = (flags & SNOW_LOCAL) != 0;
  if (apart && here) {
    return failed(SNOW_E_INVALID, "a ticket is SNOW_SPREAD or SNOW_LOCAL, not both");
  }
  Fields request = {{"call", "ticket"},
                    {"n", std::to_string(n)},
                    {"minimum", std::to_string((flags & SNOW_EXACT) != 0 ? n : 1)},
                    {"hierarchical", hierarchical ? "1" : "0"}};
  if (apart || here) request["place"] = apart ? "spread" : "local";
  Fields answer;
  const int error = ask_host(request, answer);
  if (error != 0) return error;
  const long vcpus = sysconf(_SC_NPROCESSORS_ONLN);
  auto made = new snow_ticket;
  made->id = field(answer, "ticket");
  made->granted = unsigned_field(answer, "granted");
  made->hierarchical = hierarchical;
  if (hierarchical && vcpus > 1) made->vcpus = static_cast<unsigned>(vcpus);
  *ticket = made;
  return static_cast<int>(made->granted);
}

const char* snow_ticket_id(const snow_ticket* ticket) { return ticket->id.c_str(); }

unsigned snow_ticket_processes(const snow_ticket* ticket) {
  return ticket->granted * ticket->vcpus;
}

void snow_ticket_free(snow_ticket* ticket) { delete ticket; }

int snow_clone(snow_ticket* ticket) {
  Fields answer;
  if (const int error = ask_host({{"call", "clone"}, {"ticket", ticket->id}}, answer)) return error;
  const int index = static_cast<int>(unsigned_field(answer, "index"));
  if (index == 0 || !ticket->hierarchical) return index;
  const int k = snow::guest::spread(ticket->vcpus);
  if (k < 0) return failed(SNOW_E_GUEST_FAILED, std::string("fork: ") + strerror(errno));
  return (index - 1) * static_cast<int>(ticket->vcpus) + k + 1;
}

int snow_checkpoint(char id[SNOW_ID_BYTES]) {
  Fields answer;
  id[0] = '\0';
  if (const int error = ask_host({{"call", "checkpoint"}}, answer)) return error;
  const std::string_view name = field(answer, "checkpoint");
  id[name.copy(id, SNOW_ID_BYTES - 1)] = '\0';
  return static_cast<int>(unsigned_field(answer, "index"));
}

int snow_create_clones(const char* checkpoint, snow_ticket* ticket) {
  Fields answer;
  const int error =
      ask_host({{"call", "create"}, {"checkpoint", checkpoint}, {"ticket", ticket->id}}, answer);
  return error != 0 ? error : static_cast<int>(unsigned_field(answer, "count"));
}

int snow_exit(int status, const void* payload, size_t size) {
  const unsigned vcpus = snow::guest::spread_over();
  const size_t limit = vcpus > 0 ? snow::guest::record_limit(vcpus) : SNOW_MAX_PAYLOAD;
  if (size > limit) {
    return failed(SNOW_E_INVALID, "the payload has " + std::to_string(size) + " bytes; at most " +
                                      std::to_string(limit) + " can travel to the parent");
  }
  std::string_view bytes(static_cast<const char*>(payload), size);
  std::string gathered;
  int sent_status = status;
  if (vcpus > 0) {
    if (!snow::guest::is_first()) snow::guest::end_follower(status, bytes);
    gathered = snow::guest::encode_records(snow::guest::gather(status, bytes));
    bytes = gathered;
    sent_status = 0;
  }
  CallToHost call;
  int error = call.begin({{"call", "exit"}, {"status", std::to_string(sent_status)}});
  if (error == 0) error = call.send_payload(bytes);
  Fields answer;  // comes only if the host refuses
  if (error == 0) error = call.wait_for_answer(answer);
  return error != 0 ? error : failed(SNOW_E_INTERNAL, "the host answered an exit with ok");
}

namespace {

// Waits for the answer. A host's daemon that was restarted meanwhile is asked again.
int ask_for_join(const snow_ticket& ticket, int timeout_ms, std::unique_ptr<CallToHost>& call,
                 Fields& answer) {
  constexpr int kTries = 50;
  constexpr unsigned kBetweenUs = 100'000;
  const auto start = std::chrono::steady_clock::now();
  int error = 0;
  for (int i = 0; i < kTries; ++i) {
    int64_t left_ms = timeout_ms;
    if (timeout_ms > 0) {
      const auto passed = std::chrono::steady_clock::now() - start;
      left_ms -= std::chrono::duration_cast<std::chrono::milliseconds>(passed).count();
    }
    call = std::make_unique<CallToHost>();
    error = call->begin({{"call", "join"},
                         {"ticket", ticket.id},
                         {"timeout_ms", std::to_string(std::max<int64_t>(
                                            left_ms, timeout_ms < 0 ? timeout_ms : 0))}});
    if (error != 0) return error;
    error = call->wait_for_answer(answer);
    if (error != SNOW_E_UNAVAILABLE) return error;
    usleep(kBetweenUs);
  }
  return error;
}

}  // namespace

int snow_join(snow_ticket* ticket, int timeout_ms, snow_results** results) {
  *results = nullptr;
  std::unique_ptr<CallToHost> call;
  Fields answer;
  int error = ask_for_join(*ticket, timeout_ms, call, answer);
  if (error != 0) return error;
  const unsigned count = unsigned_field(answer, "count");
  auto made = std::make_unique<snow_results>();
  for (unsigned i = 0; i < count; ++i) {
    const std::string prefix = std::to_string(i) + ".";
    JoinedClone clone;
    clone.index = unsigned_field(answer, prefix + "index");
    clone.how = how_of(field(answer, prefix + "how"));
    clone.status = static_cast<int>(number_field(answer, prefix + "status").value_or(0));
    clone.size = unsigned_field(answer, prefix + "size");
    if (clone.index == 0 || clone.size > SNOW_MAX_PAYLOAD) {
      return failed(SNOW_E_CORRUPT, "the host's answer to a join is malformed");
    }
    std::string payload;
    if ((error = call->read_payload(clone.size, payload)) != 0) return error;
    add_clone(*made, *ticket, clone, std::move(payload));
  }
  for (size_t i = 0; i < made->entries.size(); ++i) {
    made->entries[i].payload = made->payloads[i].data();
  }
  *results = made.release();
  return static_cast<int>((*results)->entries.size());
}

const snow_result* snow_results_get(const snow_results* results, unsigned i) {
  return i < results->entries.size() ? &results->entries[i] : nullptr;
}

void snow_results_free(snow_results* results) { delete results; }

int snow_kill(snow_ticket* ticket) {
  Fields answer;
  const int error = ask_host({{"call", "kill"}, {"ticket", ticket->id}}, answer);
  return error != 0 ? error : static_cast<int>(unsigned_field(answer, "count"));
}

int snow_info(snow_machine* machine) {
  *machine = snow_machine{};
  Fields answer;
  if (const int error = ask_host({{"call", "info"}}, answer)) return error;
  copy_id(machine->id, field(answer, "id"));
  copy_id(machine->name, field(answer, "name"));
  copy_id(machine->parent, field(answer, "parent"));
  copy_id(machine->ticket, field(answer, "ticket"));
  machine->index = unsigned_field(answer, "index");
  machine->generation = unsigned_field(answer, "generation");
  return 0;
}
