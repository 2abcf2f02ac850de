#include "guestlink/link.h"

#include <algorithm>
#include <mutex>

#include "base/file.h"
#include "guestlink/session.h"
#include "qemu/jail_files.h"

namespace snow {
namespace {

using channel::Fields;

constexpr size_t kEntropyBytes = 64;
constexpr size_t kParameterBytes = 32 * 1024;  // all of them; leaves room for the rest of `resume`

bool has_zero(std::string_view text) { return text.find('\0') != std::string_view::npos; }

// A name that can be an environment variable's, short enough to be a field's key with its prefix.
bool good_key(std::string_view key) {
  return !key.empty() && key.size() <= 128 && !has_zero(key) &&
         key.find('=') == std::string_view::npos;
}

Fields resume_fields(const Identity& identity) {
  if (!identity.changed) {
    return {{"changed", "0"}, {"wall_ns", std::to_string(wall_clock_ns())}};
  }
  const std::vector<std::byte> entropy = random_bytes(kEntropyBytes);
  Fields fields = {
      {"changed", "1"},
      {"id", identity.id},
      {"name", identity.name},
      {"ticket", identity.ticket},
      {"index", std::to_string(identity.index)},
      {"count", std::to_string(identity.count)},
      {"call", std::to_string(identity.call)},
      {"parent", identity.parent},
      {"generation", std::to_string(identity.generation)},
      {"image", identity.image},
      {"uuid", identity.uuid},
      {"hostname", identity.hostname},
      {"machine_id", identity.new_machine_id ? "new" : "keep"},
      {"mac", identity.mac},
      {"entropy", {reinterpret_cast<const char*>(entropy.data()), entropy.size()}},
      {"wall_ns", std::to_string(wall_clock_ns())},
  };
  for (const auto& [key, value] : identity.parameters) fields["param." + key] = value;
  for (const auto& [key, value] : identity.environment) fields["env." + key] = value;
  return fields;
}

Result<void> check_size(const Fields& fields, std::string_view what) {
  bool fits = channel::encode_fields(fields).size() <= channel::kMaxPayload;
  for (const auto& [key, value] : fields) {
    fits = fits && key.size() <= 255 && value.size() <= channel::kMaxFieldBytes;
  }
  if (fits) return {};
  return fail(Code::invalid, "{}: too long for one message to the guest ({} bytes in all, {} each)",
              what, channel::kMaxPayload, channel::kMaxFieldBytes);
}

Result<Fields> exec_fields(const ExecRequest& request) {
  if (request.argv.empty() || request.argv[0].empty()) {
    return fail(Code::invalid, "no command was given");
  }
  Fields fields = {{"kind", "exec"},
                   {"argc", std::to_string(request.argv.size())},
                   {"directory", request.directory},
                   {"user", request.user},
                   {"terminal", request.terminal ? "1" : "0"},
                   {"rows", std::to_string(request.rows)},
                   {"columns", std::to_string(request.columns)}};
  bool zero = has_zero(request.directory) || has_zero(request.user);
  for (size_t i = 0; i < request.argv.size(); ++i) {
    zero = zero || has_zero(request.argv[i]);
    fields["argv." + std::to_string(i)] = request.argv[i];
  }
  SNOW_TRY(check_parameters({}, request.environment));
  for (const auto& [key, value] : request.environment) fields["env." + key] = value;
  if (zero) return fail(Code::invalid, "the command has a zero byte in it");
  SNOW_TRY(check_size(fields, "the command"));
  return fields;
}

Result<void> check_path(const std::string& path) {
  if (!path.empty() && path[0] == '/' && !has_zero(path)) return {};
  return fail(Code::invalid, "guest file '{}': give an absolute path", path);
}

class Link : public GuestLink {
 public:
  explicit Link(std::shared_ptr<LinkSession> session) : session_(std::move(session)) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link() override { session()->shut_down(); }

  [[nodiscard]] bool has_agent() const override { return session()->has_agent(); }
  Result<void> wait_for_agent(int timeout_ms) override {
    return session()->wait_for_agent(timeout_ms);
  }
  Result<Fields> prepare(int timeout_ms) override { return session()->prepare(timeout_ms); }

  Result<ReadyReport> resume(const Identity& identity, int timeout_ms) override {
    const auto current = session();
    if (!current->resume_begun()) SNOW_TRY(begin_resume(identity));
    return current->finish_resume(timeout_ms);
  }
  Result<void> begin_resume(const Identity& identity) override {
    if (identity.changed) SNOW_TRY(check_parameters(identity.parameters, identity.environment));
    const Fields fields = resume_fields(identity);
    SNOW_TRY(check_size(fields, "the guest's identity"));
    session()->begin_resume(channel::encode_fields(fields));
    return {};
  }

  void take_over(GuestLink& old) override {
    auto& from = static_cast<Link&>(old);  // there is no other kind
    if (&from == this) return;
    const std::scoped_lock lock(mutex_, from.mutex_);
    from.session_->take_wire(*session_);
    session_.swap(from.session_);
  }

  Result<std::unique_ptr<GuestStream>> exec(const ExecRequest& request) override {
    SNOW_ASSIGN(const Fields fields, exec_fields(request));
    return open(fields, fmt::format("command '{}'", request.argv[0].substr(0, 200)));
  }
  Result<std::unique_ptr<GuestStream>> read_file(const std::string& path) override {
    SNOW_TRY(check_path(path));
    return open({{"kind", "read"}, {"path", path}}, fmt::format("guest file '{}'", path));
  }
  Result<std::unique_ptr<GuestStream>> write_file(const std::string& path, unsigned mode) override {
    SNOW_TRY(check_path(path));
    return open({{"kind", "write"}, {"path", path}, {"mode", fmt::format("{:o}", mode)}},
                fmt::format("guest file '{}'", path));
  }

  [[nodiscard]] uint64_t dropped_frames() const override { return session()->dropped(); }

 private:
  // take_over may change it under a call that is under way, which then ends with the old session.
  [[nodiscard]] std::shared_ptr<LinkSession> session() const {
    const std::lock_guard lock(mutex_);
    return session_;
  }
  Result<std::unique_ptr<GuestStream>> open(const Fields& fields, const std::string& what) {
    SNOW_TRY(check_size(fields, what));
    const auto current = session();
    SNOW_ASSIGN(auto state, current->open(fields, what));
    return make_stream(current, std::move(state));
  }

  mutable std::mutex mutex_;
  std::shared_ptr<LinkSession> session_;
};

}  // namespace

Result<std::unique_ptr<GuestLink>> GuestLink::connect(const std::string& path, Callbacks callbacks,
                                                      Start start) {
  SNOW_ASSIGN(Fd fd, connect_jail_socket(path));
  auto caller = std::make_shared<LinkSession::Caller>();
  caller->callbacks = std::move(callbacks);
  auto session = std::make_shared<LinkSession>(std::move(caller), start);
  auto link = std::make_unique<Link>(session);
  session->attach(std::make_shared<Wire>(std::move(fd)));
  return link;
}

void GuestLink::settle() { LinkLoop::instance().barrier(); }

Result<void> check_parameters(const std::map<std::string, std::string>& parameters,
                              const std::map<std::string, std::string>& environment) {
  size_t total = 0;
  for (const auto* map : {&parameters, &environment}) {
    for (const auto& [key, value] : *map) {
      if (!good_key(key)) {
        return fail(Code::invalid,
                    "'{}' cannot be the name of a parameter or variable: 1 to 128 bytes, without "
                    "'=' and zero bytes",
                    key.substr(0, 200));
      }
      if (has_zero(value)) return fail(Code::invalid, "the value of '{}' has a zero byte", key);
      total += key.size() + value.size() + 16;
    }
  }
  if (total <= kParameterBytes) return {};
  return fail(Code::invalid, "parameters and environment have {} bytes; a guest takes {}", total,
              kParameterBytes);
}

}  // namespace snow
