// The host that has everything.
#include "exchange/core/runs.h"
#include "sim/world.h"

namespace snow::sim {
namespace {

constexpr Nanos kMulticastTickEvery = 100 * exchange::kMillisecond;
constexpr uint64_t kHeaderBytes = 80;
constexpr uint64_t kBurstBytes = 200;    // the announcement
constexpr uint64_t kPerPageBytes = 250;  // hash, and the fragments' headers

}  // namespace

void World::start_origin() {
  exchange::OriginOptions options = scenario_.origin;
  options.seed = scenario_.seed;
  origin_ = std::make_unique<exchange::Origin>(scenario_.image_pages, options);
  cpu_free_[0] = cpu_free_[1] = now_;
  multicast_at_ = exchange::kNever;
  if (!scenario_.origin.multicast.on) return;
  Event event;
  event.kind = Event::Kind::multicast_tick;
  event.life = hosts_[0].life;
  queue_.at(now_ + kMulticastTickEvery, event);
}

void World::origin_receive(const Message& message) {
  switch (message.type) {
    case Message::Type::fetch: {
      if (hosts_[0].mute) return;
      ++origin_requests_;
      Nanos& cpu = cpu_free_[cpu_free_[0] <= cpu_free_[1] ? 0 : 1];
      cpu = std::max(cpu, now_) + scenario_.origin_cpu;
      cpu_used_ += scenario_.origin_cpu;
      queue_.at(cpu, Event::Kind::handle, message);
      break;
    }
    case Message::Type::wrong:
      if (!hosts_[message.about].for_good) origin_->report_wrong(message.from, message.about);
      break;
    case Message::Type::slow:
      if (message.from != 0) {
        // One that the cluster does not know any more has no number.
        if (!hosts_[message.about].for_good) {
          origin_->report_slow(message.from, message.about, now_);
        }
      } else if (!message.again) {  // the cluster's news (tell)
        origin_->forget_host(message.about);
      }
      break;
    case Message::Type::reception:
      if (origin_->multicast().subscribe(message.from, now_)) {
        origin_->multicast().report(message.from, message.got, message.missed, now_);
      }
      break;
    default:
      break;
  }
}

void World::origin_answer(const Message& request) {
  decisions_.clear();
  origin_->set_queued_bytes(network_.backlog_bytes(0, now_));
  origin_->on_fetch({request.from, request.run, request.lane, request.no_redirect, request.again},
                    now_, decisions_);
  for (const exchange::Decision& decision : decisions_) {
    Message message = request;
    message.from = 0;
    message.to = request.from;
    message.to_life = request.from_life;
    message.run = decision.run;
    message.wait = decision.wait;
    message.no_wait = decision.no_wait;
    message.host_count = decision.host_count;
    message.hosts = decision.hosts;
    message.last = decision.run.end() == request.run.end();
    uint64_t bytes = kHeaderBytes;
    switch (decision.kind) {
      case exchange::Decision::Kind::give:
        message.type = Message::Type::pages;
        message.pages = exchange::low_bits(decision.run.count);
        if (now_ < garbled_until_) message.corrupt = message.pages;
        bytes += uint64_t{exchange::kPageBytes} * decision.run.count;
        break;
      case exchange::Decision::Kind::redirect:
        message.type = Message::Type::redirect;
        bytes += 16 * decision.run.count;
        break;
      case exchange::Decision::Kind::coming:
      case exchange::Decision::Kind::already_coming:
        message.type = Message::Type::coming;
        break;
      case exchange::Decision::Kind::retry:
        message.type = Message::Type::retry;
        break;
    }
    send(message, bytes);
  }
  schedule_multicast();
}

void World::schedule_multicast() {
  const Nanos ready = origin_->multicast().ready_at(now_);
  if (ready == exchange::kNever || std::max(ready, now_) >= multicast_at_) return;
  multicast_at_ = std::max(ready, now_);
  Event event;
  event.kind = Event::Kind::multicast_send;
  event.life = hosts_[0].life;
  queue_.at(multicast_at_, event);
}

void World::multicast_send() {
  multicast_at_ = exchange::kNever;
  while (const std::optional<Run> run = origin_->multicast().next(now_)) {
    origin_page_bytes_ += uint64_t{exchange::kPageBytes} * run->count;
    const uint64_t bytes = kBurstBytes + (exchange::kPageBytes + kPerPageBytes) * run->count;
    const Network::Burst burst = network_.multicast(0, bytes, now_);
    for (size_t i = 1; i < hosts_.size(); ++i) {
      const Host& host = hosts_[i];
      const auto number = static_cast<HostNumber>(i);
      if (!host.listening || host.state != State::up) continue;
      const Network::Receipt receipt = network_.receive(0, number, burst, run->count);
      if (receipt.at == 0) continue;
      Message message;
      message.type = Message::Type::multicast;
      message.to = number;
      message.from_life = hosts_[0].life;
      message.to_life = host.life;
      message.run = *run;
      message.pages = receipt.pages;
      message.got = receipt.got;
      message.missed = receipt.missed;
      queue_.at(receipt.at, Event::Kind::deliver, message);
    }
  }
  schedule_multicast();
}

void World::multicast_tick() {
  std::vector<HostNumber> leave;
  origin_->multicast().tick(now_, leave);
  for (const HostNumber host : leave) {
    Message message;
    message.type = Message::Type::leave;
    message.to = host;
    message.to_life = hosts_[host].life;
    send(message, kHeaderBytes);
  }
  schedule_multicast();
  if (ended_) return;
  Event event;
  event.kind = Event::Kind::multicast_tick;
  event.life = hosts_[0].life;
  queue_.at(now_ + kMulticastTickEvery, event);
}

}  // namespace snow::sim
