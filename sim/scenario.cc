#include "sim/scenario.h"

#include <algorithm>

namespace snow::sim {
namespace {

using exchange::kMicrosecond;
using exchange::kMillisecond;
using exchange::kSecond;

void redirects(Scenario& scenario, bool on) { scenario.origin.redirects = on; }
void multicast(Scenario& scenario) { scenario.origin.multicast.on = true; }

void fill(Scenario& scenario) {
  scenario.fill = true;
  scenario.image_pages = 4096;
}

void lossy(Scenario& scenario, double most, Random& random) {
  multicast(scenario);
  for (LinkSpec& link : scenario.links) {
    link.loss = most * static_cast<double>(random.below(1000)) / 1000;
  }
}

HostNumber any_host(const Scenario& scenario, Random& random) {
  return static_cast<HostNumber>(random.between(1, scenario.links.size() - 1));
}

Nanos soon(Random& random, Nanos most = 300 * kMillisecond) {
  return static_cast<Nanos>(random.below(static_cast<uint64_t>(most)));
}

void deaths(Scenario& scenario, Random& random) {
  const size_t count = random.between(1, std::max<size_t>(1, scenario.links.size() / 4));
  std::vector<HostNumber> dead;
  for (size_t i = 0; i < count; ++i) {
    const HostNumber host = any_host(scenario, random);
    if (std::find(dead.begin(), dead.end(), host) != dead.end()) continue;
    dead.push_back(host);
    const Nanos at = soon(random);
    const bool killed = random.chance(0.5);
    scenario.faults.push_back({killed ? Fault::Kind::kill : Fault::Kind::power_off, at, host, 0});
    if (random.chance(0.5)) {
      scenario.faults.push_back(
          {Fault::Kind::restart, at + kMillisecond + soon(random, 5 * kSecond), host, 0});
    }
  }
}

void origin_restarts(Scenario& scenario, Random& random) {
  const Nanos at = soon(random, 100 * kMillisecond);
  scenario.faults.push_back(
      {random.chance(0.5) ? Fault::Kind::kill : Fault::Kind::power_off, at, 0, 0});
  scenario.faults.push_back(
      {Fault::Kind::restart, at + kMillisecond + soon(random, 15 * kSecond), 0, 0});
}

void partitions(Scenario& scenario, Random& random) {
  Nanos at = 0;
  const uint64_t rounds = random.between(1, 3);
  for (uint64_t round = 0; round < rounds; ++round) {
    at += soon(random, 200 * kMillisecond);
    for (size_t i = 0; i < scenario.links.size(); ++i) {
      if (!random.chance(0.5)) continue;
      scenario.faults.push_back({Fault::Kind::partition, at, static_cast<HostNumber>(i), 1});
    }
    at += kMillisecond + soon(random, random.chance(0.5) ? 200 * kMillisecond : 10 * kSecond);
    scenario.faults.push_back({Fault::Kind::heal, at, 0, 0});
  }
}

void some(Scenario& scenario, Random& random, Fault::Kind kind, Nanos within) {
  const size_t count = random.between(1, std::max<size_t>(1, scenario.links.size() / 5));
  for (size_t i = 0; i < count; ++i) {
    scenario.faults.push_back(
        {kind, within == 0 ? 0 : soon(random, within), any_host(scenario, random), 0});
  }
}

void slow_hosts(Scenario& scenario, Random& random) {
  some(scenario, random, Fault::Kind::slow, 50 * kMillisecond);
  scenario.demand_most = 60 * kSecond;
  for (const Fault& fault : std::vector<Fault>(scenario.faults)) {
    if (fault.kind == Fault::Kind::slow && random.chance(0.3)) {
      scenario.faults.push_back(
          {Fault::Kind::fast, fault.at + soon(random, 3 * kSecond), fault.host, 0});
    }
  }
}

void chaos(Scenario& scenario, Random& random) {
  scenario.told = random.chance(0.7);
  if (random.chance(0.7)) multicast(scenario);
  if (random.chance(0.3)) lossy(scenario, 0.1, random);
  if (random.chance(0.4)) scenario.hot_set = true;
  if (random.chance(0.3)) fill(scenario);
  if (random.chance(0.4)) deaths(scenario, random);
  if (random.chance(0.3)) origin_restarts(scenario, random);
  if (random.chance(0.4)) partitions(scenario, random);
  if (random.chance(0.3)) slow_hosts(scenario, random);
  if (random.chance(0.3)) some(scenario, random, Fault::Kind::corrupt, 100 * kMillisecond);
  if (random.chance(0.3)) some(scenario, random, Fault::Kind::mute, 100 * kMillisecond);
  if (random.chance(0.3)) some(scenario, random, Fault::Kind::deaf, 100 * kMillisecond);
  if (random.chance(0.2)) {
    scenario.faults.push_back({Fault::Kind::garble, soon(random, 100 * kMillisecond), 0, 0});
  }
}

// Everything is fetched; then the origin goes for good, and the clones read on.
void origin_gone_after(Scenario& scenario, Random& random) {
  fill(scenario);
  if (random.chance(0.5)) multicast(scenario);
  scenario.think = 300 * kMillisecond;
  scenario.faults.push_back({Fault::Kind::kill, 30 * kSecond, 0, 0});
}

struct Maker {
  ScenarioName name;
  void (*make)(Scenario&, Random&);
};

const std::vector<Maker>& makers() {
  static const std::vector<Maker> list = {
      {{"unicast", "everything from the origin, nothing goes wrong"},
       [](Scenario& s, Random&) { redirects(s, false); }},
      {{"relay", "hosts pass pages on; the origin sends at most twice what is needed"},
       [](Scenario& s, Random&) { s.amplification_most = 2; }},
      {{"multicast", "one answer serves all; at most 1.3 times"},
       [](Scenario& s, Random&) {
         multicast(s);
         s.amplification_most = 1.3;
       }},
      {{"fill-relay", "everything is fetched"},
       [](Scenario& s, Random&) {
         fill(s);
         s.amplification_most = 2;
       }},
      {{"fill-multicast", "everything is fetched"},
       [](Scenario& s, Random&) {
         fill(s);
         multicast(s);
         s.amplification_most = 1.3;
       }},
      {{"hot-set", "later clones: the working set is fetched ahead of the reads"},
       [](Scenario& s, Random& random) {
         s.hot_set = true;
         if (random.chance(0.5)) multicast(s);
         s.amplification_most = 2;
       }},
      {{"loss", "up to 5 percent of packets are lost on every link"},
       [](Scenario& s, Random& random) { lossy(s, 0.05, random); }},
      {{"heavy-loss", "up to 20 percent"},
       [](Scenario& s, Random& random) { lossy(s, 0.2, random); }},
      {{"deaths", "receivers die, some come back"},
       [](Scenario& s, Random& random) {
         if (random.chance(0.5)) multicast(s);
         deaths(s, random);
       }},
      {{"origin-restart", "the origin dies and is back some time later"},
       [](Scenario& s, Random& random) {
         if (random.chance(0.5)) multicast(s);
         origin_restarts(s, random);
       }},
      {{"origin-gone", "the origin dies for good after everything was fetched"}, origin_gone_after},
      {{"partition", "the network falls apart and heals, and nobody tells"},
       [](Scenario& s, Random& random) {
         s.told = false;
         if (random.chance(0.5)) multicast(s);
         partitions(s, random);
       }},
      {{"slow", "some hosts have links of 1 Mbit/s"},
       [](Scenario& s, Random& random) {
         if (random.chance(0.5)) multicast(s);
         slow_hosts(s, random);
       }},
      {{"wrong-bytes", "some hosts serve wrong bytes"},
       [](Scenario& s, Random& random) {
         some(s, random, Fault::Kind::corrupt, 0);
         some(s, random, Fault::Kind::corrupt, 50 * kMillisecond);
       }},
      {{"mute", "some hosts take requests and never answer"},
       [](Scenario& s, Random& random) { some(s, random, Fault::Kind::mute, 50 * kMillisecond); }},
      {{"deaf", "multicast reaches only some hosts, or none"},
       [](Scenario& s, Random& random) {
         multicast(s);
         const double share = static_cast<double>(random.between(1, 4)) / 4;
         for (LinkSpec& link : s.links) link.multicast = !random.chance(share);
       }},
      {{"chaos", "all of it"}, chaos},
  };
  return list;
}

}  // namespace

const std::vector<ScenarioName>& scenario_names() {
  static const std::vector<ScenarioName> names = [] {
    std::vector<ScenarioName> list;
    for (const Maker& maker : makers()) list.push_back(maker.name);
    return list;
  }();
  return names;
}

Scenario make_scenario(std::string_view name, uint64_t seed, uint32_t hosts) {
  Scenario scenario;
  for (const Maker& maker : makers()) {
    if (maker.name.name != name) continue;
    scenario.name = name;
    scenario.seed = seed;
    Random random(seed ^ 0x5eed);
    scenario.links.resize(size_t{hosts} + 1);
    const Nanos delay = static_cast<Nanos>(random.between(10, 200)) * kMicrosecond;
    for (LinkSpec& link : scenario.links) link.delay = delay;
    scenario.start_spread = soon(random, 50 * kMillisecond);
    scenario.think = 20 * kMicrosecond + soon(random, 2 * kMillisecond);
    maker.make(scenario, random);
    std::stable_sort(scenario.faults.begin(), scenario.faults.end(),
                     [](const Fault& a, const Fault& b) { return a.at < b.at; });
  }
  return scenario;
}

}  // namespace snow::sim
