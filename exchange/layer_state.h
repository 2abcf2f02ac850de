// What is behind a RemoteLayer: the cache file, the receiver's half of the decision core, and what
// carries out its decisions. For remote_layer.cc, the engine and layer_*.cc only.
//
// Thread model: mutex_ guards the core and all that is marked so; it is never held across I/O. A
// reader does its own ask (layer_ask.cc) on its own thread; whoever ends another's wait marks its
// Waiter, wakes it, and interrupts the connection on which it waits in vain.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "exchange/cache_file.h"
#include "exchange/core/receiver.h"
#include "exchange/remote_layer.h"
#include "exchange/shared.h"
#include "exchange/wire.h"

namespace snow::exchange {

class Responder;

class LayerState : public std::enable_shared_from_this<LayerState> {
 public:
  LayerState(std::shared_ptr<Shared> shared, Descriptor descriptor,
             std::unique_ptr<CacheFile> cache);

  // RemoteLayer's functions.
  Result<void> read(uint64_t offset, std::span<std::byte> into);
  void on_pages(RemoteLayer::OnPages callback);
  void on_complete(std::function<void()> callback);
  void fill(uint64_t bytes_per_second);
  void pause_fill();
  Result<void> detach(int timeout_ms);
  [[nodiscard]] bool complete() const { return complete_; }
  [[nodiscard]] std::string waiting_for(Nanos at_least) const;  // "" : nothing waits
  [[nodiscard]] nlohmann::json statistics() const;
  void keep();
  // Waits for what is under way; the cache file is gone afterwards, unless it is kept.
  void close();
  [[nodiscard]] bool closed() const;

  [[nodiscard]] const Descriptor& descriptor() const { return descriptor_; }
  [[nodiscard]] const std::string& path() const { return path_; }

  // The engine's.
  // After the constructor: what an earlier daemon has kept. asked_before: this host may have
  // asked the origin for the image already.
  void start(bool asked_before);
  Nanos tick(Nanos now);  // returns when next
  void stop();            // reads that wait return
  void serve(const wire::Fetch& fetch, Responder& responder);
  uint64_t evict(uint64_t bytes);
  void host_down(const std::string& host);
  void host_up(const std::string& host);

  // Multicast: pages that are verified. `raw`: the pages that are not zeros.
  void unasked(Run run, uint64_t zeros, wire::Bytes raw);
  void count_packets(uint64_t got, uint64_t missed);
  void listen(bool on);
  [[nodiscard]] bool wants_multicast() const { return listening_ && !complete_; }

 private:
  // A thread that waits for pages: a reader, or one that serves another host.
  struct Waiter {
    DemandId demand = 0;
    bool arrived = false;                    // under mutex_, as all of the next three
    peer::Connection* connection = nullptr;  // on which its own ask is
    std::vector<Ask> todo;                   // asks that it is to do itself
    std::condition_variable wake;
    // Of a reader: what it reads. Pages of its own asks are put there at once.
    Run run;
    uint64_t offset = 0;
    std::span<std::byte> into;
    uint64_t filled = 0;  // bit i: page run.first + i is in `into`
  };
  struct Traffic {
    uint64_t bytes = 0, pages = 0;
  };
  struct Buffers;
  enum class Talk { done, failed, stale };
  // A job or server thread that uses the cache; none begins after close().
  class Active;
  // A connection that is interrupted if its use is in vain.
  class InUse;

  // layer_read.cc
  Result<void> fetch(uint64_t offset, std::span<std::byte> into);
  bool assemble(uint64_t offset, std::span<std::byte> into);
  bool do_asks(Waiter& waiter, std::optional<Ask> first);
  void act(Actions& actions, Waiter* self);  // with mutex_ held
  void begin_wait(Waiter& waiter);           // with mutex_ held
  void end_wait(Waiter& waiter);             // with mutex_ held

  // layer_ask.cc
  bool try_ask(const Ask& ask, Waiter* self);  // false: no connection is there for it
  void run_ask(const Ask& ask);
  bool ask_on(peer::Lease lease, bool reused, const Ask& ask, Waiter* self);
  void submit(const Ask& ask);
  Talk talk(peer::Connection& connection, const Ask& ask, Waiter* self);
  void ask_failed(const Ask& ask, Waiter* self);
  Result<void> send_fetch(peer::Connection& connection, const Ask& ask, wire::Buffer& out);

  // layer_answer.cc: one part of an answer. `last`: the answer is over. An error: the connection
  // is of no more use; the core was told.
  Result<void> take_part(uint8_t type, wire::Bytes payload, const Ask& ask, Waiter* self,
                         Buffers& buffers, bool& last);
  Result<void> take_pages(wire::Bytes payload, const Ask& ask, Waiter* self, Buffers& buffers,
                          bool& last);
  Result<void> take_redirect(wire::Bytes payload, const Ask& ask, Waiter* self, bool& last);
  Result<void> take_notice(wire::Type type, wire::Bytes payload, const Ask& ask, Waiter* self,
                           bool& last);
  Result<void> wrong(const Ask& ask, Waiter* self, Error why);
  Result<void> check_hashes(Run run, uint64_t zeros, wire::Bytes raw);
  void fill_reader(Waiter& waiter, Run run, uint64_t zeros, wire::Bytes raw);
  void keep_pages(Run run, uint64_t zeros, wire::Bytes raw);
  void keep_aside(Run run, wire::Bytes raw);  // with mutex_ held
  void forget_aside();  // with mutex_ held: there may be room now, they are fetched again and kept
  void hand_out(Run run, wire::Bytes raw);
  void note_progress();  // with mutex_ held

  // layer_serve.cc
  bool origin_has_it();
  void await_run(const wire::Fetch& fetch);
  bool next_stretch(Run rest, std::span<std::byte> room, Run& part);

  // layer_bulk.cc
  void start_bulk();  // with mutex_ held
  void bulk_session();
  bool next_bulk_asks(std::deque<Ask>& outstanding, std::vector<Ask>& to_send);
  void apply_fill();  // with mutex_ held
  std::optional<peer::Lease> bulk_connection(const Ask& ask);
  bool take_answer(peer::Connection& connection, const Ask& ask, Buffers& buffers);

  // layer_control.cc
  void control();
  [[nodiscard]] bool map_known() const;
  Result<void> heed(uint8_t type, const wire::Buffer& answer);
  Result<void> fetch_map();
  Result<void> fetch_map_part(Run run);
  Result<void> announce();
  Result<uint8_t> call_origin(wire::Type type, const wire::Buffer& request, wire::Buffer& answer);
  void completed();

  const std::shared_ptr<Shared> shared_;
  const Descriptor descriptor_;
  const std::string path_;
  const HostNumber origin_;
  const std::unique_ptr<CacheFile> cache_holder_;
  CacheFile* const cache_;

  mutable std::mutex mutex_;  // of all below
  Receiver core_;
  Actions actions_;  // reused
  std::vector<Waiter*> waiters_;
  std::vector<peer::Connection*> in_use_;  // of jobs
  std::deque<Ask> bulk_;
  int bulk_workers_ = 0;
  std::unordered_map<uint32_t, wire::PageHash> hashes_;  // of pages that peers were named for
  std::unordered_map<uint32_t, std::vector<std::byte>> aside_;  // that the disk did not take
  std::deque<uint32_t> aside_order_;
  std::vector<wire::HostReport> reports_;
  uint64_t packets_got_ = 0, packets_missed_ = 0;
  std::shared_ptr<const RemoteLayer::OnPages> on_pages_;
  std::vector<std::function<void()>> on_complete_;
  Traffic from_origin_[3], from_peers_[3], from_multicast_, to_peers_;
  uint64_t unkept_pages_ = 0;
  Nanos disk_full_until_ = 0;
  bool fill_ = false;
  uint64_t fill_rate_ = 0;
  bool map_done_ = false;
  bool subscribed_ = false;  // control()'s own
  bool sealed_ = false;
  bool have_told_ = false;  // the origin knows that this host has all of it
  bool control_busy_ = false;
  Nanos control_due_ = 0;
  Nanos control_pause_ = 0;
  bool stopping_ = false;
  bool closed_ = false;
  int active_ = 0;
  std::condition_variable changed_;  // active_, complete_, stopping_, disk full
  std::atomic<bool> complete_ = false;
  std::atomic<bool> listening_ = false;
  std::atomic<bool> origin_lacks_it_ = false;  // so it said when it last answered
};

struct LayerState::Buffers {
  wire::Buffer in, out, scratch;
};

class LayerState::Active {
 public:
  explicit Active(LayerState& layer);
  Active(const Active&) = delete;
  ~Active();
  explicit operator bool() const { return good_; }

 private:
  LayerState& layer_;
  bool good_;
};

class LayerState::InUse {
 public:
  // `self`: the reader whose connection it is; null: a job's.
  InUse(LayerState& layer, peer::Connection& connection, Waiter* self);
  InUse(const InUse&) = delete;
  ~InUse();

 private:
  LayerState& layer_;
  peer::Connection& connection_;
  Waiter* const self_;
};

}  // namespace snow::exchange
