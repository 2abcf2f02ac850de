// A host that receives: its clones' reads, its asks, what it serves to others. This is what the
// engine does around the core, without sockets.
#include <fmt/format.h>

#include <utility>

#include "exchange/core/runs.h"
#include "sim/world.h"

namespace snow::sim {
namespace {

constexpr Nanos kWatchMost = 500 * exchange::kMillisecond;
constexpr Nanos kLoad = 5 * exchange::kMillisecond;
constexpr Nanos kReceptionEvery = 100 * exchange::kMillisecond;
constexpr Nanos kListenAgain = 31 * exchange::kSecond;
constexpr Nanos kReadAhead = 2 * exchange::kMillisecond;  // of time, in one event
constexpr uint64_t kRequestBytes = 80;

}  // namespace

// The image is opened some time before the clones run: their machine state is loaded meanwhile.
void World::open(HostNumber number) {
  Host& host = hosts_[number];
  if (host.state != State::up) return;  // killed before it began
  if (host.receiver == nullptr) {
    host.receiver =
        std::make_unique<exchange::Receiver>(scenario_.image_pages, 0, scenario_.receiver);
    host.hashes = exchange::PageMap(scenario_.image_pages);
    host.damaged = exchange::PageMap(scenario_.image_pages);
    host.readers.resize(scenario_.readers);
    for (uint32_t i = 0; i < scenario_.readers; ++i) host.readers[i].step = i;
  }
  if (scenario_.origin.multicast.on) {
    host.listening = true;
    report_reception(number);
  }
  Event event;
  event.kind = Event::Kind::reader;
  event.host = number;
  event.life = host.life;
  event.id = UINT64_MAX;
  queue_.at(std::max(now_ + kLoad, host.started), event);
}

void World::start_host(HostNumber number) {
  Host& host = hosts_[number];
  with_core(number, [&](exchange::Actions& out) {
    for (const Run& run : zeros_) host.receiver->zeros(run, now_, out);
    if (scenario_.hot_set) {
      for (const Run& run : sequence_) {
        host.receiver->set_hot(run);
        needed_.set(run);
      }
    }
    if (scenario_.fill) {
      host.receiver->set_fill(true, scenario_.fill_rate);
      needed_.set({0, scenario_.image_pages});
    }
  });
  for (size_t i = 0; i < host.readers.size(); ++i) {
    host.readers[i].waiting = false;  // a VM's read that nobody answered is asked again
    if (!host.readers[i].done) advance(number, i);
  }
  note_progress(number);
}

Run World::access(HostNumber number, uint32_t step) const {
  const uint64_t draw = mix(scenario_.seed ^ mix(uint64_t{number} << 32 | step));
  if (static_cast<double>(draw >> 11) * 0x1.0p-53 < scenario_.private_share) {
    return {static_cast<uint32_t>(mix(draw) % scenario_.image_pages), 1};
  }
  return sequence_[step];
}

void World::advance(HostNumber number, size_t index) {
  Host& host = hosts_[number];
  Reader& reader = host.readers[index];
  if (reader.waiting || reader.done) return;
  Nanos time = now_;
  while (reader.step < scenario_.steps && time - now_ < kReadAhead) {
    const Run run = access(number, reader.step);
    if (!host.receiver->present(run)) {
      if (time > now_) break;
      needed_.set(run);
      reader.waiting = true;
      reader.run = run;
      reader.since = now_;
      with_core(number, [&](exchange::Actions& out) {
        const exchange::Want want = host.receiver->want(run, now_, out);
        reader.demand = want.demand;
        if (want.state == exchange::Want::State::ask) ask(number, want.ask);
        if (want.state == exchange::Want::State::present) fail("want() contradicts present()");
      });
      return;
    }
    for (uint32_t page = run.first; page < run.end(); ++page) {
      if (host.damaged.test(page)) {
        fail(fmt::format("host {} was given wrong bytes of page {}", number, page));
      }
    }
    reader.step += scenario_.readers;
    time += scenario_.think;
  }
  if (reader.step >= scenario_.steps) {
    reader.done = true;
    note_progress(number);
    return;
  }
  Event event;
  event.kind = Event::Kind::reader;
  event.host = number;
  event.life = host.life;
  event.id = index;
  queue_.at(time, event);
}

void World::note_progress(HostNumber number) {
  Host& host = hosts_[number];
  const auto read = [](const Reader& reader) { return reader.done; };
  if (host.done_at < 0 && std::all_of(host.readers.begin(), host.readers.end(), read)) {
    host.done_at = now_;
  }
  if (host.complete_at < 0 && host.receiver->complete()) host.complete_at = now_;
}

void World::schedule_tick(HostNumber number) {
  Host& host = hosts_[number];
  const Nanos next = host.receiver->next_tick();
  if (next == exchange::kNever || next >= host.tick_at) return;
  host.tick_at = std::max(next, now_);
  Event event;
  event.kind = Event::Kind::tick;
  event.host = number;
  event.life = host.life;
  queue_.at(host.tick_at, event);
}

void World::act(HostNumber number, const exchange::Actions& actions) {
  Host& host = hosts_[number];
  for (const exchange::Ask& one : actions.asks) ask(number, one);
  for (const exchange::Report& report : actions.reports) {
    Message message;
    message.type =
        report.kind == exchange::Report::Kind::wrong ? Message::Type::wrong : Message::Type::slow;
    message.from = number;
    message.to_life = hosts_[0].life;
    message.about = report.host;
    send(message, kRequestBytes);
  }
  for (const exchange::DemandId id : actions.arrived) {
    for (size_t i = 0; i < host.readers.size(); ++i) {
      Reader& reader = host.readers[i];
      if (!reader.waiting || reader.demand != id) continue;
      if (!host.receiver->present(reader.run)) fail("a reader was woken without its pages");
      reader.waiting = false;
      advance(number, i);
    }
    for (size_t i = 0; i < host.watches.size(); ++i) {
      if (host.watches[i].id != id) continue;
      const Message request = host.watches[i].request;
      end_watch(number, i);
      answer(number, request);
      break;
    }
  }
}

void World::ask(HostNumber number, const exchange::Ask& ask) {
  Message message;
  message.type = Message::Type::fetch;
  message.from = number;
  message.to = ask.host;
  message.to_life = hosts_[ask.host].life;
  message.ask = ask.id;
  message.run = ask.run;
  message.lane = ask.lane;
  message.no_redirect = ask.no_redirect;
  message.again = ask.again;
  message.no_wait = ask.no_wait;
  message.deadline = ask.deadline;
  send(message, kRequestBytes);
}

void World::receive(HostNumber number, const Message& message) {
  Host& host = hosts_[number];
  if (host.receiver == nullptr) return;
  exchange::Receiver& core = *host.receiver;
  if (message.type == Message::Type::fetch) {
    serve(number, message);
    return;
  }
  if (message.type == Message::Type::leave) {
    host.listening = false;
    host.listen_again = now_ + kListenAgain;
    return;
  }
  if (message.deadline > 0 && now_ > message.deadline) return;
  with_core(number, [&](exchange::Actions& out) {
    switch (message.type) {
      case Message::Type::pages:
        take_pages(number, message, out);
        break;
      case Message::Type::redirect:
        host.hashes.set(message.run);
        core.redirect(message.ask, message.run, {message.hosts.data(), message.host_count},
                      message.no_wait, now_, out);
        break;
      case Message::Type::coming:
        core.coming(message.ask, message.run, message.wait, now_, out);
        break;
      case Message::Type::retry:
        core.retry(message.ask, message.run, message.wait, now_, out);
        break;
      case Message::Type::absent:
        core.absent(message.ask, message.run, now_, out);
        break;
      case Message::Type::refused:
        core.failed(message.ask, now_, out);
        break;
      case Message::Type::multicast:
        host.got += message.got;
        host.missed += message.missed;
        if (!std::exchange(host.hears, true)) report_now(number);  // so that others may rely on it
        exchange::for_each_run(message.pages, message.run.first,
                               [&](Run run) { core.unasked(run, now_, out); });
        break;
      case Message::Type::slow:  // the cluster's news (tell)
        if (message.again) {
          core.host_up(message.about, now_, out);
        } else {
          core.host_down(message.about, now_, out);
          if (message.no_wait && message.about != 0) core.forget_host(message.about, now_, out);
        }
        break;
      default:
        break;
    }
    if (message.last) core.finished(message.ask, now_, out);
  });
  note_progress(number);
}

// The engine's check: the checksum of what the origin sent, the origin's hashes for what another
// host sent. Without a hash it could not tell.
void World::take_pages(HostNumber number, const Message& message, exchange::Actions& out) {
  Host& host = hosts_[number];
  exchange::for_each_run(message.pages, message.run.first, [&](Run run) {
    bool bad = false;
    for (uint32_t page = run.first; page < run.end(); ++page) {
      const bool corrupt = (message.corrupt >> (page - message.run.first) & 1) != 0;
      const bool checked = message.from == 0 || host.hashes.test(page);
      if (corrupt && checked) bad = true;
      if (corrupt && !checked && !host.receiver->present(page)) host.damaged.set({page, 1});
    }
    if (bad) {
      host.receiver->wrong(message.ask, run, now_, out);
    } else {
      host.receiver->pages(message.ask, run, now_, out);
    }
  });
}

void World::serve(HostNumber number, const Message& request) {
  Host& host = hosts_[number];
  if (host.mute) return;
  const exchange::Serve serve = host.receiver->serve(request.run, request.no_wait, now_);
  if (serve.state != exchange::Serve::State::wait) {
    answer(number, request);
    return;
  }
  host.watches.push_back({serve.watch, request});
  hosts_[request.from].held.push_back({number, serve.watch, request.run});
  check_chain(request.from, number, request.run, 1);
  Event event;
  event.kind = Event::Kind::watch_deadline;
  event.host = number;
  event.life = host.life;
  event.id = serve.watch;
  queue_.at(now_ + kWatchMost, event);
}

void World::end_watch(HostNumber number, size_t index) {
  Host& host = hosts_[number];
  const Watch watch = host.watches[index];
  std::erase_if(hosts_[watch.request.from].held,
                [&](const Held& held) { return held.at == number && held.watch == watch.id; });
  host.watches[index] = host.watches.back();
  host.watches.pop_back();
}

void World::answer(HostNumber number, const Message& request) {
  const Host& host = hosts_[number];
  Message message = request;
  message.from = number;
  message.to = request.from;
  message.to_life = request.from_life;
  message.pages = 0;
  for (uint32_t i = 0; i < request.run.count; ++i) {
    if (host.receiver->present(request.run.first + i)) message.pages |= uint64_t{1} << i;
  }
  const uint64_t lacks = exchange::low_bits(request.run.count) & ~message.pages;
  message.last = lacks == 0;
  if (message.pages != 0) {
    message.type = Message::Type::pages;
    if (host.corrupt) message.corrupt = random_.next() | 1;
    send(message, kRequestBytes + uint64_t{exchange::kPageBytes} *
                                      static_cast<uint64_t>(std::popcount(message.pages)));
  }
  exchange::for_each_run(lacks, request.run.first, [&](Run run) {
    Message absent = message;
    absent.type = Message::Type::absent;
    absent.run = run;
    absent.last =
        run.end() == request.run.first + (64 - static_cast<uint32_t>(std::countl_zero(lacks)));
    send(absent, kRequestBytes);
  });
}

void World::report_now(HostNumber number) {
  Host& host = hosts_[number];
  Message message;
  message.type = Message::Type::reception;
  message.from = number;
  message.to_life = hosts_[0].life;
  message.got = std::exchange(host.got, 0);
  message.missed = std::exchange(host.missed, 0);
  send(message, kRequestBytes);
}

void World::report_reception(HostNumber number) {
  Host& host = hosts_[number];
  if (ended_) return;
  if (!host.listening && now_ >= host.listen_again) host.listening = true;
  if (host.listening) report_now(number);
  Event event;
  event.kind = Event::Kind::reception;
  event.host = number;
  event.life = host.life;
  queue_.at(now_ + kReceptionEvery, event);
}

}  // namespace snow::sim
