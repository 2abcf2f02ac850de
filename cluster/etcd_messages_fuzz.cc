// etcd's answers, and values that anyone may have written: any bytes are refused or understood, and
// a record that is understood survives being written and read again.
#include <cstdlib>
#include <string_view>

#include "cluster/base64.h"
#include "cluster/etcd_messages.h"
#include "cluster/values.h"

namespace {

template <class Record>
void round_trip(const std::string& key, std::string_view bytes,
                snow::Result<Record> (*parse)(const snow::Directory::Entry&)) {
  auto value = snow::parse_stored_value(key, bytes);
  if (!value) return;
  const auto record = parse({key, std::move(*value), 1});
  if (!record) return;
  // What was read can be written, within the directory's limits...
  snow::Transaction transaction;
  transaction.puts.push_back({key, snow::to_json(*record), snow::kNoLease});
  const auto texts = snow::check_transaction(transaction);
  if (!texts) std::abort();
  // ... and is the same when it is read again.
  auto again = snow::parse_stored_value(key, texts->front());
  if (!again) std::abort();
  const auto second = parse({key, std::move(*again), 1});
  if (!second || snow::to_json(*second) != snow::to_json(*record)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const auto range = snow::parse_etcd_range(bytes)) {
    for (const auto& entry : range->entries) {
      if (entry.key.empty() || entry.revision == 0) std::abort();
      (void)snow::parse_stored_value(entry.key, entry.value);
    }
  }
  (void)snow::parse_etcd_txn(bytes);
  (void)snow::parse_etcd_grant(bytes);
  (void)snow::parse_etcd_keep_alive(bytes);
  if (snow::parse_etcd_error(bytes).size() > 300) std::abort();
  if (const auto decoded = snow::base64_decode(bytes)) {
    if (snow::base64_encode(*decoded) != bytes) std::abort();
  }
  round_trip<snow::Member>("member/h0123456789ab", bytes, snow::parse_member);
  round_trip<snow::HostRecord>("host/h0123456789ab", bytes, snow::parse_host);
  round_trip<snow::VmRecord>("vm/x", bytes, snow::parse_vm);
  return 0;
}
