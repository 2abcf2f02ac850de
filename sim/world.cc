#include "sim/world.h"

#include <fmt/format.h>

#include <algorithm>

namespace snow::sim {
namespace {

constexpr Nanos kCheckEvery = 250 * exchange::kMillisecond;
constexpr Nanos kOpenAhead = 5 * exchange::kMillisecond;
constexpr Nanos kRunOut = 300 * exchange::kSecond;
constexpr double kSlowBytesPerS = 125e3;

}  // namespace

World::World(const Scenario& scenario)
    : scenario_(scenario),
      random_(scenario.seed),
      network_(scenario.links, Random(scenario.seed + 1)),
      hosts_(scenario.links.size()),
      zero_(scenario.image_pages),
      needed_(scenario.image_pages) {
  const uint32_t pages = scenario_.image_pages;
  for (uint32_t page = 0; page < pages; page += 8) {
    if (!random_.chance(scenario_.zero_share)) continue;
    zeros_.push_back({page, std::min(8u, pages - page)});
    zero_.set(zeros_.back());
  }
  // The working set: places all over the image, near each other in clusters; the first places
  // are visited more often.
  std::vector<Run> places;
  for (uint32_t left = scenario_.working_set_pages; left > 0;) {
    const uint32_t count = std::min<uint32_t>(left, 1u << random_.below(4));
    const uint32_t first = static_cast<uint32_t>(random_.below(pages - count + 1));
    places.push_back({first, count});
    left -= count;
  }
  size_t fresh = 0;
  for (uint32_t step = 0; step < scenario_.steps; ++step) {
    const uint64_t due = places.size() * (step + 1) / scenario_.steps;
    if (fresh < due) {
      sequence_.push_back(places[fresh++]);
    } else {
      sequence_.push_back(places[random_.below(random_.below(fresh) + 1)]);
    }
  }
  for (size_t i = 0; i < hosts_.size(); ++i) hosts_[i].fast = scenario_.links[i];
}

Result World::run() {
  start_origin();
  for (size_t i = 1; i < hosts_.size(); ++i) {
    Event event;
    event.kind = Event::Kind::open;
    event.host = static_cast<HostNumber>(i);
    const Nanos at =
        static_cast<Nanos>(random_.below(static_cast<uint64_t>(scenario_.start_spread) + 1));
    hosts_[i].started = at + kOpenAhead;
    queue_.at(at, event);
  }
  for (size_t i = 0; i < scenario_.faults.size(); ++i) {
    Event event;
    event.kind = Event::Kind::fault;
    event.id = i;
    queue_.at(scenario_.faults[i].at, event);
  }
  queue_.at(kCheckEvery, Event{});
  while (!queue_.empty() && violation_.empty()) {
    now_ = queue_.next();
    const Event event = queue_.pop();
    handle(event);
    if (now_ > scenario_.limit + kRunOut) fail("it does not come to rest");
  }
  if (violation_.empty()) check_end();
  return result();
}

void World::fail(const std::string& text) {
  if (violation_.empty()) {
    violation_ = fmt::format("at {:.6f} s: {}", static_cast<double>(now_) / 1e9, text);
  }
}

void World::handle(const Event& event) {
  Host& host = hosts_[event.host];
  const bool alive = host.state == State::up && event.life == host.life;
  switch (event.kind) {
    case Event::Kind::deliver:
      deliver(queue_.take(event.message));
      break;
    case Event::Kind::handle: {
      const Message message = queue_.take(event.message);
      if (message.to_life == hosts_[0].life && hosts_[0].state == State::up) {
        origin_answer(message);
      }
      break;
    }
    case Event::Kind::tick:
      if (!alive || host.tick_at != now_) break;
      host.tick_at = exchange::kNever;
      with_core(event.host, [&](exchange::Actions& out) { host.receiver->tick(now_, out); });
      break;
    case Event::Kind::open:
      open(event.host);
      break;
    case Event::Kind::reader:
      if (!alive) break;
      if (event.id == UINT64_MAX) {
        start_host(event.host);
      } else {
        advance(event.host, event.id);
      }
      break;
    case Event::Kind::watch_deadline:
      if (!alive) break;
      for (size_t i = 0; i < host.watches.size(); ++i) {
        if (host.watches[i].id != event.id) continue;
        host.receiver->cancel(event.id);
        const Message request = host.watches[i].request;
        end_watch(event.host, i);
        answer(event.host, request);
        break;
      }
      break;
    case Event::Kind::reception:
      if (alive) report_reception(event.host);
      break;
    case Event::Kind::multicast_send:
      if (!alive || multicast_at_ != now_) break;
      multicast_send();
      break;
    case Event::Kind::multicast_tick:
      if (alive) multicast_tick();
      break;
    case Event::Kind::fault:
      apply(scenario_.faults[event.id]);
      break;
    case Event::Kind::check:
      check();
      if (!ended_) queue_.at(now_ + kCheckEvery, Event{});
      break;
  }
}

void World::send(Message message, uint64_t bytes) {
  message.from_life = hosts_[message.from].life;
  const Nanos at =
      network_.unicast(message.from, message.to, bytes, message.lane, now_, message.deadline);
  if (at == exchange::kNever) return;
  if (message.type == Message::Type::pages && message.from == 0) {
    origin_page_bytes_ +=
        uint64_t{exchange::kPageBytes} * static_cast<uint64_t>(std::popcount(message.pages));
  }
  queue_.at(at, Event::Kind::deliver, message);
}

void World::deliver(Message message) {
  Host& to = hosts_[message.to];
  if (!network_.reachable(message.from, message.to)) return;
  if (message.from_life != hosts_[message.from].life || to.state == State::silent) return;
  if (message.run.contains(scenario_.trace_page)) trace(message);
  fingerprint_ = mix(fingerprint_ ^ static_cast<uint64_t>(now_) ^ (uint64_t{message.to} << 48) ^
                     (uint64_t{message.run.first} << 20) ^ static_cast<uint64_t>(message.type));
  if (to.state == State::refused || message.to_life != to.life) {
    if (message.type != Message::Type::fetch) return;
    Message refused = message;
    refused.type = Message::Type::refused;
    std::swap(refused.from, refused.to);
    refused.to_life = message.from_life;
    send(refused, 64);
    return;
  }
  if (message.to == 0) {
    origin_receive(message);
  } else {
    receive(message.to, message);
  }
}

void World::trace(const Message& message) const {
  static constexpr const char* kTypes[] = {"FETCH",     "PAGES",     "REDIRECT", "COMING", "RETRY",
                                           "ABSENT",    "REFUSED",   "done",     "wrong",  "slow",
                                           "reception", "MULTICAST", "leave"};
  static constexpr const char* kLanes[] = {"demand", "hot", "background"};
  std::string more;
  if (message.no_redirect) more += " no_redirect";
  if (message.again) more += " again";
  if (message.no_wait) more += " no_wait";
  for (size_t i = 0; i < message.host_count; ++i) more += fmt::format(" {}", message.hosts[i]);
  if (message.wait > 0)
    more += fmt::format(" wait {:.3f} ms", static_cast<double>(message.wait) / 1e6);
  const bool has = (message.pages >> (scenario_.trace_page - message.run.first) & 1) != 0;
  fmt::print("{:11.6f} s  {:4} -> {:4} {:9} {} {}+{}{}{}\n", static_cast<double>(now_) / 1e9,
             message.from, message.to, kTypes[static_cast<size_t>(message.type)],
             kLanes[static_cast<size_t>(message.lane)], message.run.first, message.run.count,
             has ? " has it" : "", more);
}

void World::apply(const Fault& fault) {
  last_fault_ = now_;
  Host& host = hosts_[fault.host];
  const bool dies = fault.kind == Fault::Kind::kill || fault.kind == Fault::Kind::power_off;
  switch (fault.kind) {
    case Fault::Kind::kill:
    case Fault::Kind::power_off: {
      host.state = fault.kind == Fault::Kind::kill ? State::refused : State::silent;
      ++host.life;
      host.held.clear();
      host.watches.clear();
      bool back = false;
      for (const Fault& other : scenario_.faults) {
        back = back || (other.kind == Fault::Kind::restart && other.host == fault.host &&
                        other.at > fault.at);
      }
      host.for_good = !back;
      if (scenario_.told) tell(fault.host, false, now_ + scenario_.notice);
      break;
    }
    case Fault::Kind::restart:
      restart(fault.host);
      if (scenario_.told) tell(fault.host, true, now_ + scenario_.notice);
      break;
    case Fault::Kind::partition:
      network_.set_group(fault.host, fault.group);
      break;
    case Fault::Kind::heal:
      for (size_t i = 0; i < hosts_.size(); ++i) network_.set_group(static_cast<HostNumber>(i), 0);
      break;
    case Fault::Kind::corrupt:
      host.corrupt = true;
      break;
    case Fault::Kind::mute:
      host.mute = true;
      break;
    case Fault::Kind::slow:
      network_.link(fault.host).up_bytes_per_s = kSlowBytesPerS;
      network_.link(fault.host).down_bytes_per_s = kSlowBytesPerS;
      break;
    case Fault::Kind::fast:
      network_.link(fault.host) = host.fast;
      break;
    case Fault::Kind::deaf:
      network_.link(fault.host).multicast = false;
      break;
    case Fault::Kind::garble:
      garbled_until_ = now_ + 50 * exchange::kMillisecond;
      break;
  }
  if (!dies) return;
  // Whoever waited at it, or for it, is not in a chain with it any more.
  for (Host& other : hosts_) {
    std::erase_if(other.held, [&](const Held& held) { return held.at == fault.host; });
  }
}

// The cluster's news reach the hosts. Delivered at once to all: what is late or lost of it is a
// scenario without them.
void World::tell(HostNumber about, bool up, Nanos when) {
  Event event;
  event.kind = Event::Kind::deliver;
  Message message;
  message.type = Message::Type::slow;  // a message to oneself: see receive()
  message.about = about;
  message.again = up;
  message.no_wait = hosts_[about].for_good;
  for (size_t i = 0; i < hosts_.size(); ++i) {
    const auto number = static_cast<HostNumber>(i);
    if (number == about || hosts_[i].state != State::up) continue;
    message.from = message.to = number;
    message.from_life = message.to_life = hosts_[i].life;
    queue_.at(when, Event::Kind::deliver, message);
  }
}

void World::restart(HostNumber number) {
  Host& host = hosts_[number];
  host.state = State::up;
  ++host.life;
  if (number == 0) {
    start_origin();
    return;
  }
  if (host.receiver == nullptr) {
    open(number);
    return;
  }
  auto next = std::make_unique<exchange::Receiver>(scenario_.image_pages, 0, scenario_.receiver);
  next->set_asked_before();
  for (uint32_t page = 0; page < scenario_.image_pages; ++page) {
    if (host.receiver->present(page)) next->set_present({page, 1});
  }
  host.receiver = std::move(next);
  host.hashes = exchange::PageMap(scenario_.image_pages);
  host.tick_at = exchange::kNever;
  host.listening = host.hears = false;
  open(number);
}

}  // namespace snow::sim
