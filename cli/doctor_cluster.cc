#include <curl/curl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <strings.h>
#include <time.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <thread>

#include "cli/doctor.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

constexpr long kAskMs = 3000;
constexpr long kMostClockDifferenceS = 5;

struct Answer {
  std::string trouble;  // empty: it answered
  std::string body;
  std::optional<time_t> clock;  // its Date header
};

size_t take_body(char* data, size_t one, size_t count, void* into) {
  auto& body = static_cast<Answer*>(into)->body;
  if (body.size() < 4096) body.append(data, one * count);
  return one * count;
}

size_t take_header(char* data, size_t one, size_t count, void* into) {
  const std::string line(data, one * count);
  if (::strncasecmp(line.c_str(), "date:", 5) == 0) {
    const time_t time = curl_getdate(line.c_str() + 5, nullptr);
    if (time >= 0) static_cast<Answer*>(into)->clock = time;
  }
  return one * count;
}

// `connect_only`: is there anybody who listens? Nothing is sent.
Answer ask(const std::string& url, bool connect_only) {
  Answer answer;
  CURL* curl = curl_easy_init();
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, kAskMs);
  curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
  if (connect_only) curl_easy_setopt(curl, CURLOPT_CONNECT_ONLY, 1L);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer);
  if (const CURLcode code = curl_easy_perform(curl); code != CURLE_OK) {
    answer.trouble = curl_easy_strerror(code);
  }
  curl_easy_cleanup(curl);
  return answer;
}

std::vector<Finding> check_directory(const nlohmann::json& cluster) {
  std::vector<Finding> findings;
  const std::string trouble = cluster.value("trouble", "");
  const int64_t left_ms = cluster.value("lease_left_ms", int64_t{0});
  if (left_ms <= 0) {
    findings.push_back(
        {"lease", Verdict::fail,
         fmt::format("over: this host starts no VMs until the directory answers ({})",
                     trouble.empty() ? "no reason is known" : printable(trouble))});
  } else if (!trouble.empty()) {
    findings.push_back({"lease", Verdict::warn,
                        fmt::format("{:.1f} s left, and the directory does not answer: {}",
                                    static_cast<double>(left_ms) / 1e3, printable(trouble))});
  } else {
    findings.push_back(
        {"lease", Verdict::pass, fmt::format("{:.1f} s left", static_cast<double>(left_ms) / 1e3)});
  }
  const auto urls = cluster.value("etcd", std::vector<std::string>{});
  if (urls.empty()) {
    findings.push_back({"etcd", Verdict::pass, "none: the directory is a file of this host"});
  }
  std::optional<double> difference_s;
  for (const std::string& url : urls) {
    const time_t before = ::time(nullptr);
    const Answer answer = ask(url + "/health", false);
    const time_t after = ::time(nullptr);
    if (!answer.trouble.empty()) {
      findings.push_back({"etcd", urls.size() > 1 ? Verdict::warn : Verdict::fail,
                          fmt::format("{}: {}; start it, or look at the network", printable(url),
                                      answer.trouble)});
      continue;
    }
    const bool healthy = answer.body.find("true") != std::string::npos;
    findings.push_back(
        {"etcd", healthy ? Verdict::pass : Verdict::warn,
         fmt::format("{}: {}", printable(url),
                     healthy ? "healthy" : "not healthy: " + printable(answer.body))});
    // The header has whole seconds.
    if (answer.clock) {
      difference_s = static_cast<double>(*answer.clock) + 0.5 -
                     (static_cast<double>(before) + static_cast<double>(after) + 1) / 2;
    }
  }
  if (difference_s) {
    const bool far = std::abs(*difference_s) > kMostClockDifferenceS;
    findings.push_back(
        {"clock", far ? Verdict::warn : Verdict::pass,
         far ? fmt::format("{:.0f} s {} etcd's: certificates may count as not valid; run an NTP "
                           "client, as in apt-get install chrony",
                           std::abs(*difference_s), *difference_s > 0 ? "behind" : "before")
             : "as etcd's"});
  }
  return findings;
}

Finding check_members(const nlohmann::json& cluster, const nlohmann::json& hosts) {
  std::vector<std::string> gone;
  size_t alive = 0;
  for (const nlohmann::json& host : hosts) {
    if (host.value("state", "") == "gone") {
      gone.push_back(cell(host, "name"));
    } else {
      ++alive;
    }
  }
  const std::string text =
      fmt::format("'{}', this is host '{}'; {} of {} hosts alive", cell(cluster, "name"),
                  cell(cluster, "host_name"), alive, hosts.size());
  if (gone.empty()) return {"cluster", Verdict::pass, text};
  return {"cluster", Verdict::warn,
          fmt::format("{}; gone: {}; start snowd there, or `snow host rm` them", text,
                      fmt::join(gone, ", "))};
}

// This host's address too: what listens there must be reachable for others, too.
std::vector<Finding> check_addresses(const nlohmann::json& hosts) {
  std::vector<const nlohmann::json*> asked;
  for (const nlohmann::json& host : hosts) {
    if (host.value("state", "") != "gone") asked.push_back(&host);
  }
  std::vector<Answer> answers(asked.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < asked.size(); ++i) {
    threads.emplace_back(
        [&, i] { answers[i] = ask("http://" + asked[i]->value("address", ""), true); });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<Finding> findings;
  size_t good = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    if (answers[i].trouble.empty()) {
      ++good;
      continue;
    }
    const bool self = asked[i]->value("self", false);
    findings.push_back(
        {"reachable", self ? Verdict::fail : Verdict::warn,
         fmt::format("host '{}' at {}: {}; {}", cell(*asked[i], "name"), cell(*asked[i], "address"),
                     answers[i].trouble,
                     self ? "is the address this host's, and the port free?"
                          : "forks cannot use it; look at firewalls and the network")});
  }
  if (findings.empty()) {
    findings.push_back({"reachable", Verdict::pass, fmt::format("{} hosts answer", good)});
  }
  return findings;
}

}  // namespace

std::vector<Finding> check_cluster(const Client& client, const nlohmann::json& info) {
  const auto at = info.find("cluster");
  if (at == info.end() || !at->is_object()) return {};
  std::vector<Finding> findings = check_directory(*at);
  const auto hosts = client.get("/hosts");
  if (!hosts) {
    findings.insert(findings.begin(), {"cluster", Verdict::fail, hosts.error().message});
    return findings;
  }
  findings.insert(findings.begin(), check_members(*at, *hosts));
  for (Finding& finding : check_addresses(*hosts)) findings.push_back(std::move(finding));
  return findings;
}

}  // namespace snow::cli
