// snow-sim: the exchange's decision core among simulated hosts. See --help.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>

#include "sim/scaling.h"
#include "sim/world.h"

namespace {

constexpr const char* kUsage = R"(snow-sim [--scenario NAME] [--seed N | --seeds A..B] [--hosts N]
snow-sim --scaling [MOST]

Runs the exchange's decision core with simulated hosts and checks what must always hold. The same
seed gives the same run.

  --scenario NAME  all of them, if it is not given
  --seed N         one run, with its figures
  --seeds A..B     one run for each; prints the command that repeats a failure
  --hosts N        receivers, up to 2000 (default: 2 to 24, by the seed)
  --trace PAGE     prints every message that speaks of this page
  --scaling [MOST] the tables of docs/scaling.md, up to MOST hosts (default 2000)

Exit code: 0, 1 if something did not hold, 2 for a wrong command line.

Scenarios:
)";

constexpr uint32_t kHostsMost = 2000;

int usage(const std::string& problem) {
  if (!problem.empty()) fmt::print(stderr, "snow-sim: {}\n\n", problem);
  fmt::print(problem.empty() ? stdout : stderr, "{}", kUsage);
  for (const auto& scenario : snow::sim::scenario_names()) {
    fmt::print(problem.empty() ? stdout : stderr, "  {:16} {}\n", scenario.name, scenario.about);
  }
  return problem.empty() ? 0 : 2;
}

bool number(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

struct Options {
  std::string scenario;
  uint64_t first_seed = 1, last_seed = 1;
  bool single = true;
  uint64_t hosts = 0;
  bool scaling = false;
  uint64_t scaling_most = kHostsMost;
  uint64_t trace = UINT32_MAX;
  bool help = false;
};

// What is wrong with the command line; empty: nothing.
std::string parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--help" || name == "-h") {
      options.help = true;
      return {};
    }
    if (name == "--scaling") {
      options.scaling = true;
      if (number(value, options.scaling_most)) ++i;
      continue;
    }
    ++i;
    if (name == "--scenario") {
      options.scenario = value;
    } else if (name == "--hosts") {
      if (!number(value, options.hosts) || options.hosts == 0 || options.hosts > kHostsMost) {
        return fmt::format("--hosts: not a number from 1 to {}: '{}'", kHostsMost, value);
      }
    } else if (name == "--trace") {
      if (!number(value, options.trace)) return fmt::format("--trace: no number: '{}'", value);
    } else if (name == "--seed") {
      if (!number(value, options.first_seed)) return fmt::format("--seed: no number: '{}'", value);
      options.last_seed = options.first_seed;
    } else if (name == "--seeds") {
      const size_t dots = value.find("..");
      if (dots == std::string_view::npos || !number(value.substr(0, dots), options.first_seed) ||
          !number(value.substr(dots + 2), options.last_seed)) {
        return fmt::format("--seeds: not A..B: '{}'", value);
      }
      options.single = false;
    } else {
      return fmt::format("unknown option '{}'", name);
    }
  }
  return {};
}

void print_result(const snow::sim::Scenario& scenario, const snow::sim::Result& result) {
  const auto ms = [](snow::sim::Nanos time) { return static_cast<double>(time) / 1e6; };
  fmt::print("{}: {} hosts, seed {}: {} finished", scenario.name, scenario.links.size() - 1,
             scenario.seed, result.done.size());
  if (!result.done.empty()) {
    fmt::print(", p50 {:.1f} ms, p100 {:.1f} ms", ms(result.done[result.done.size() / 2]),
               ms(result.done.back()));
  }
  fmt::print(
      "; demand p50 {:.3f} ms, p99 {:.3f} ms\n  origin: {:.2f} times the {:.1f} MiB needed, {} "
      "requests, link {:.0f} %, CPU {:.0f} %\n  {} redirects, {} hedges, {} multicasts missed, {} "
      "failures, {} pages twice, longest chain {}, {} events, fingerprint {:016x}\n",
      ms(result.demand_p50), ms(result.demand_p99), result.amplification(),
      static_cast<double>(result.distinct_bytes) / (1 << 20), result.origin_requests,
      100 * result.origin_link_busy, 100 * result.origin_cpu_busy, result.redirects, result.hedges,
      result.coming_missed, result.failures, result.duplicates, result.longest_chain, result.events,
      result.fingerprint);
  fmt::print(
      "  origin: {} pages given, {} redirected, {} multicast, {} said to be coming, rate {:.0f} "
      "MB/s\n",
      result.origin.pages_given, result.origin.pages_redirected, result.origin.pages_multicast,
      result.origin.pages_coming + result.origin.pages_already_coming,
      static_cast<double>(result.multicast_rate) / 1e6);
}

// True: all held.
bool run_one(std::string_view name, uint64_t seed, const Options& options) {
  const auto hosts = static_cast<uint32_t>(options.hosts);
  const bool print = options.single;
  const uint32_t count = hosts > 0 ? hosts : static_cast<uint32_t>(2 + snow::sim::mix(seed) % 23);
  snow::sim::Scenario scenario = snow::sim::make_scenario(name, seed, count);
  scenario.trace_page = static_cast<uint32_t>(options.trace);
  const snow::sim::Result result = snow::sim::World(scenario).run();
  if (print) print_result(scenario, result);
  if (result.violation.empty()) return true;
  fmt::print("FAILED: snow-sim --scenario {} --seed {} --hosts {}\n  {}\n", name, seed, count,
             result.violation);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  const std::string problem = parse(argc, argv, options);
  if (options.help || !problem.empty()) return usage(problem);
  if (options.scaling) return snow::sim::print_scaling(options.scaling_most);
  uint64_t runs = 0;
  uint64_t failed = 0;
  for (const auto& scenario : snow::sim::scenario_names()) {
    if (!options.scenario.empty() && options.scenario != scenario.name) continue;
    for (uint64_t seed = options.first_seed; seed <= options.last_seed; ++seed) {
      ++runs;
      const bool held = run_one(scenario.name, seed, options);
      failed += held ? 0 : 1;
      std::fflush(stdout);
    }
  }
  if (runs == 0) return usage(fmt::format("no scenario '{}'", options.scenario));
  if (!options.single) fmt::print("{} runs, {} failed\n", runs, failed);
  return failed == 0 ? 0 : 1;
}
