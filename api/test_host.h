// A Host for tests of the plumbing around it: one VM "web" whose programs are a few built-in ones,
// a file store, an image "tiny", and on demand a cluster whose other member "b" is gone. It shows
// what the API and the command line do with requests, errors and streams; what VMs really do is the
// system tests' matter. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "vm/host.h"

namespace snow {

class TestHost : public Host {
 public:
  static constexpr const char* kId = "00c0ffee";

  Result<nlohmann::json> info() override;
  Result<nlohmann::json> import_image(const ImportRequest& request) override;
  Result<nlohmann::json> images() override;
  Result<nlohmann::json> image(const std::string& name) override;
  Result<void> remove_image(const std::string& name) override;
  Result<nlohmann::json> run(const RunRequest& request) override;
  Result<nlohmann::json> vms(bool all) override;
  Result<nlohmann::json> inspect(const std::string& vm) override;
  Result<nlohmann::json> pause(const std::string& vm) override;
  Result<nlohmann::json> resume(const std::string& vm) override;
  Result<nlohmann::json> stop(const std::string& vm, unsigned timeout_ms) override;
  Result<nlohmann::json> kill(const std::string& vm) override;
  Result<void> remove(const std::string& vm, bool force) override;
  Result<nlohmann::json> reserve(const std::string& vm, unsigned count, unsigned minimum,
                                 const Placing& placing) override;
  Result<nlohmann::json> tickets() override;
  Result<void> give_back(const std::string& ticket) override;
  Result<nlohmann::json> fork(const ForkRequest& request) override;
  Result<nlohmann::json> join(const std::string& ticket, int64_t timeout_ms) override;
  Result<nlohmann::json> kill_ticket(const std::string& ticket) override;
  Result<nlohmann::json> snapshot(const std::string& vm, const std::string& name) override;
  Result<nlohmann::json> snapshots() override;
  Result<nlohmann::json> snapshot_info(const std::string& name) override;
  Result<void> remove_snapshot(const std::string& name) override;
  // Programs: "echo ARGS", "cat" (input to output), "fail TEXT N" (TEXT to standard error, exit N),
  // "wait" (until a signal; 128 + its number), "size" (prints "ROWS COLUMNS" of the next resize),
  // "flood N" (N bytes), "stuck" (takes no input). Others end with 127.
  Result<std::unique_ptr<GuestStream>> exec(const std::string& vm,
                                            const ExecRequest& request) override;
  Result<std::unique_ptr<GuestStream>> read_file(const std::string& vm,
                                                 const std::string& path) override;
  Result<std::unique_ptr<GuestStream>> write_file(const std::string& vm, const std::string& path,
                                                  unsigned mode) override;
  Result<std::string> console_log(const std::string& vm) override;
  Result<std::unique_ptr<ConsoleSession>> console(const std::string& vm) override;
  Result<nlohmann::json> make_cluster(const ClusterRequest& request) override;
  Result<nlohmann::json> join_cluster(const JoinRequest& request) override;
  Result<nlohmann::json> make_join_token(unsigned seconds) override;
  Result<nlohmann::json> hosts() override;
  Result<nlohmann::json> host(const std::string& name) override;
  Result<nlohmann::json> drain_host(const std::string& name, bool drain) override;
  Result<void> remove_host(const std::string& name, bool force) override;
  Result<nlohmann::json> detach(const std::string& vm, int timeout_ms) override;
  std::shared_ptr<Neighbours> neighbours() override { return others; }
  void serve_api(std::function<void(peer::Connection&)> session) override;
  Result<nlohmann::json> events(uint64_t after, int timeout_ms) override;

  // Before the server starts:
  std::string vm_id = kId, vm_name = "web", vm_ticket = "feed";  // of its VM
  std::string host_id = "h000000000001", host_name = "a";
  std::string address = "127.0.0.1:7171";
  std::vector<std::string> etcd;
  bool in_cluster = false;
  std::shared_ptr<Neighbours> others;

  std::atomic<int> streams{0};  // that live
  std::atomic<int> last_signal{0};
  std::atomic<bool> hold_inspect{false};  // inspect blocks while it is set
  std::mutex mutex;                       // guards what follows
  std::string state = "running";
  std::map<std::string, std::string> files;
  std::string imported;  // what import_image could read of its file
  std::string imported_path;
  RunRequest last_run;
  ForkRequest last_fork;
  Placing last_placing;  // of reserve
  ClusterRequest last_cluster;
  JoinRequest last_join;
  unsigned last_token_seconds = 0;
  bool drained = false;  // host "b"
  int last_detach_ms = 0;
  std::string waiting_for;  // the VM waits for this host
  std::function<void(peer::Connection&)> api_session;

 private:
  Result<void> only_mine(const std::string& vm) const;
  [[nodiscard]] nlohmann::json vm_json(const std::string& id, const std::string& name,
                                       int index) const;
  [[nodiscard]] nlohmann::json host_json(const std::string& which) const;
};

}  // namespace snow
