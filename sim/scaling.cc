#include "sim/scaling.h"

#include <fmt/format.h>

#include <cstdio>

#include "sim/world.h"

namespace snow::sim {

int print_scaling(uint64_t most) {
  int status = 0;
  for (const bool hot : {false, true}) {
    fmt::print("{}\n\n", hot ? "The working set is known (later clones of an image)"
                             : "Nothing is known (first clones)");
    fmt::print(
        "| hosts | mode | p50 ms | p100 ms | demand p50 ms | demand p99 ms | origin bytes / "
        "distinct | requests | origin link | origin CPU | chain |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (const char* mode : {"unicast", "relay", "multicast"}) {
      for (const uint32_t hosts : {2u, 4u, 8u, 16u, 32u, 64u, 128u, 256u, 512u, 1000u, 2000u}) {
        if (hosts > most) break;
        Scenario scenario = make_scenario(mode, 1, hosts);
        scenario.hot_set = hot;
        scenario.amplification_most = 0;
        for (LinkSpec& link : scenario.links) link.delay = 50 * exchange::kMicrosecond;
        scenario.start_spread = 20 * exchange::kMillisecond;
        scenario.think = 20 * exchange::kMicrosecond;
        scenario.demand_most = scenario.limit;
        const Result result = World(scenario).run();
        if (!result.violation.empty()) {
          fmt::print("FAILED: {} hosts, {}: {}\n", hosts, mode, result.violation);
          status = 1;
          continue;
        }
        const auto ms = [](Nanos time) { return static_cast<double>(time) / 1e6; };
        fmt::print(
            "| {} | {} | {:.0f} | {:.0f} | {:.2f} | {:.2f} | {:.2f} | {} | {:.0f} % | {:.0f} "
            "% | {} |\n",
            hosts, mode, ms(result.done[result.done.size() / 2]), ms(result.done.back()),
            ms(result.demand_p50), ms(result.demand_p99), result.amplification(),
            result.origin_requests, 100 * result.origin_link_busy, 100 * result.origin_cpu_busy,
            result.longest_chain);
        std::fflush(stdout);
      }
    }
    fmt::print("\n");
  }
  return status;
}

}  // namespace snow::sim
