// Membership: what is known of the other hosts.
#include <algorithm>

#include "cluster/membership.h"

namespace snow {

Result<uint64_t> Membership::look() {
  const int64_t asked = options_.clock();
  std::vector<Directory::Damaged> damaged;
  SNOW_ASSIGN(const auto member_entries, directory_.list("member/", &damaged));
  SNOW_ASSIGN(const auto host_entries, directory_.list("host/", &damaged));
  const int64_t answered = options_.clock();

  std::map<std::string, HostView> views;
  for (const auto& entry : member_entries) {
    if (auto member = parse_member(entry)) {
      views[member->id].member = std::move(*member);
    } else {
      damaged.push_back({entry.key, member.error()});
    }
  }
  uint64_t own_revision = 0;
  for (const auto& entry : host_entries) {
    auto host = parse_host(entry);
    if (!host) {
      damaged.push_back({entry.key, host.error()});
      continue;
    }
    if (host->id == options_.id && host->instance == instance_) own_revision = entry.revision;
    if (const auto view = views.find(host->id); view != views.end()) view->second.live = *host;
  }
  std::vector<std::string> problems;
  for (const auto& one : damaged) {
    problems.push_back(one.error.message);
    for (auto& [id, view] : views) {
      if (one.key == host_key(id)) view.problem = one.error.message;
    }
  }

  const std::lock_guard lock(mutex_);
  hosts_.clear();
  std::map<std::string, int64_t> gone_since;
  for (auto& [id, view] : views) {
    if (!view.live && view.problem.empty()) {
      // Seen missing from the first answer on, and still when this was asked.
      const auto before = gone_since_.find(id);
      gone_since[id] = before == gone_since_.end() ? answered : before->second;
      view.gone_ns = std::max<int64_t>(asked - gone_since[id], 0);
    }
    hosts_.push_back(std::move(view));
  }
  gone_since_ = std::move(gone_since);
  problems_ = std::move(problems);
  seen_at_ = asked;
  return own_revision;
}

Result<void> Membership::refresh() {
  const std::lock_guard working(working_);
  SNOW_TRY(look());
  return {};
}

std::vector<HostView> Membership::hosts() const {
  const std::lock_guard lock(mutex_);
  return hosts_;
}

std::vector<std::string> Membership::problems() const {
  const std::lock_guard lock(mutex_);
  return problems_;
}

int64_t Membership::seen_ago_ns() const {
  const std::lock_guard lock(mutex_);
  return seen_at_ == INT64_MIN ? INT64_MAX : options_.clock() - seen_at_;
}

bool Membership::draining() const {
  const std::lock_guard lock(mutex_);
  return std::any_of(hosts_.begin(), hosts_.end(), [&](const HostView& view) {
    return view.member.id == options_.id && view.member.drain;
  });
}

}  // namespace snow
