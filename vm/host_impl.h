// The Host's implementation: the maps of everything and what ties them together. Split by subject:
//   host_open.cc      start and stop of the daemon's host, ends of processes
//   host_restore.cc   take-over from an earlier daemon
//   host_run.cc       run
//   host_vms.cc       list, pause, stop, kill, remove
//   host_access.cc    exec, files, console
//   host_fork.cc      fork, step by step
//   host_thaw.cc      bringing one clone up
//   host_tickets.cc   reserve, give back, join, kill
//   host_guest.cc     what programs in guests ask for
//   host_snapshots.cc images and snapshots
//   host_cluster.cc   making, joining and leaving a cluster; its hosts
//   host_spread.cc    what this host asks of the others
//   host_remote.cc    what the others ask of it
//
// Locks: Vm::operation is taken before mutex_; mutex_ is never held while a QEMU, a guest, the
// keeper or a disk is waited for, and nothing that owns a process or a file is destroyed under it.
#pragma once

#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "vm/cluster.h"
#include "vm/context.h"
#include "vm/frozen.h"
#include "vm/host.h"
#include "vm/settler.h"
#include "vm/ticket.h"
#include "vm/vm.h"
#include "vm/workers.h"

namespace snow {

inline constexpr uint64_t kTicketResultBytes = uint64_t{512} << 20;  // of all clones of one ticket

std::string sha256_hex(std::string_view content);

class HostImpl : public Host {
 public:
  explicit HostImpl(const Settings& settings);
  ~HostImpl() override;
  Result<void> start();

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
  Result<std::unique_ptr<GuestStream>> exec(const std::string& vm,
                                            const ExecRequest& request) override;
  Result<std::unique_ptr<GuestStream>> read_file(const std::string& vm,
                                                 const std::string& path) override;
  Result<std::unique_ptr<GuestStream>> write_file(const std::string& vm, const std::string& path,
                                                  unsigned mode) override;
  Result<std::string> console_log(const std::string& vm) override;
  Result<std::unique_ptr<ConsoleSession>> console(const std::string& vm) override;
  Result<nlohmann::json> events(uint64_t after, int timeout_ms) override;
  Result<nlohmann::json> make_cluster(const ClusterRequest& request) override;
  Result<nlohmann::json> join_cluster(const JoinRequest& request) override;
  Result<nlohmann::json> make_join_token(unsigned seconds) override;
  Result<nlohmann::json> hosts() override;
  Result<nlohmann::json> host(const std::string& name) override;
  Result<nlohmann::json> drain_host(const std::string& name, bool drain) override;
  Result<void> remove_host(const std::string& name, bool force) override;
  Result<nlohmann::json> detach(const std::string& vm, int timeout_ms) override;
  std::shared_ptr<Neighbours> neighbours() override;
  void serve_api(std::function<void(peer::Connection&)> session) override;

 private:
  using VmPtr = std::shared_ptr<Vm>;
  using TicketPtr = std::shared_ptr<Ticket>;

  // host_open.cc
  Result<void> make_run_dir();
  Result<void> open_services();
  Result<void> mount_ram();
  Result<void> restore_record();
  void claim_network(const Vm& vm);
  // What an earlier daemon left: processes by their key, and paths.
  struct Found {
    std::map<std::string, KeptProcess> running;
    std::map<std::string, KeptProcess> ended;
    std::vector<std::string> paths;
    // The process of a record, if it runs.
    [[nodiscard]] const KeptProcess* find(const nlohmann::json& process) const;
  };
  void restore_vms(const Found& found);
  // `prepared`: its agent stands prepared for a freeze. `may_wait`: a QEMU that does not answer yet
  // is waited for later.
  void restore_vm(const VmPtr& vm, const nlohmann::json& record, const Found& found,
                  bool prepared = false, bool may_wait = false);
  Result<std::string> reach(const VmPtr& vm, int timeout_ms);  // QEMU's status
  void take_over(const VmPtr& vm, const std::string& status, bool prepared);
  void start_waiting_for_silent();
  void end_lost(const VmPtr& vm, const nlohmann::json& process, const Found& found,
                const std::string& why);
  void restore_tickets();
  std::shared_ptr<BootFiles> shared_boot_files(const nlohmann::json& json);
  // False: a worker does the rest, and removes the fork's record when it is done.
  bool finish_fork_under_way(const VmPtr& vm, const nlohmann::json& fork, const Found& found);
  void remove_orphans(const Found& found);
  void keeper_lost();
  void process_ended(const KeptProcess& process);
  void tick();

  // host_vms.cc
  Result<VmPtr> find(const std::string& name);               // by id, name or unique prefix
  Result<VmPtr> find_live(const std::string& name);          // Code::wrong_state once ended
  Result<std::string> free_name(const std::string& wanted);  // under mutex_
  Result<nlohmann::json> run_image(const RunRequest& request);
  Result<MachineConfig> config_of(const RunRequest& request, const StoredImage& image);
  Result<std::shared_ptr<LazyFile>> image_disk(const StoredImage& image);
  void save(const Vm& vm);       // to the record; a failure is logged, and made up for later
  void attach(const VmPtr& vm);  // QMP events, exits
  void guest_panicked(const VmPtr& vm, pid_t pid);
  void guest_reset(const VmPtr& vm, pid_t pid);
  Result<void> connect(const VmPtr& vm, GuestLink::Start start);  // guest link, console
  Result<void> attach_console(const VmPtr& vm, const QemuProcess& process);
  void set_state(const VmPtr& vm, VmState state);
  void end_vm(const VmPtr& vm, VmState state,
              VmExit exit);        // operation held or not needed any more
  void kill_now(const VmPtr& vm);  // operation not needed
  void wait_for_agent(const VmPtr& vm);
  static tl::unexpected<Error> ended_error(const Vm& vm);
  // What an operation on a VM begins with; Vm::operation is held by the caller.
  struct Live {
    std::shared_ptr<QemuProcess> process;
    VmState state = VmState::starting;
    bool agent = false;
  };
  Result<Live> live(const VmPtr& vm);                                // Code::wrong_state once ended
  Result<std::shared_ptr<QemuProcess>> with_agent(const VmPtr& vm);  // it has answered
  void ask_to_shut_down(const Live& now, unsigned timeout_ms);
  std::string console_path(const Vm& vm) const;
  nlohmann::json describe(const VmPtr& vm);
  nlohmann::json placed(const Vm& vm);  // mutex_ is held by the caller

  // host_spread.cc
  struct RoomWanted {
    MachineConfig config;
    uint64_t disk_size = 0;
    std::string name;
    std::string ticket;
    std::string kernel, initrd;  // hashes; empty: none, or not found out yet
  };
  // Clones that are brought up on another host, and what came of them.
  struct RemoteThaw {
    std::string host;
    std::string reservation;
    std::vector<nlohmann::json> clones;  // who they are
    nlohmann::json described = nlohmann::json::array();
    nlohmann::json steps;
  };
  Result<std::shared_ptr<Cluster>> need_cluster() const;
  Result<std::string> kernel_hash(const std::string& path);
  Result<std::unique_ptr<RemotePart>> reserve_on(const std::string& host, const RoomWanted& wanted,
                                                 unsigned count);
  void reserve_elsewhere(Reservation& reservation, const RoomWanted& wanted,
                         const std::vector<Share>& shares, std::string& why);
  Result<void> take_room(Reservation& reservation, const VmPtr& vm, const MachineConfig& config,
                         const Ground& ground, unsigned count, unsigned minimum,
                         const Placing& placing, const std::string& ticket);
  Result<nlohmann::json> offer(const std::shared_ptr<Frozen>& frozen);
  exchange::Offer offer_of(const std::shared_ptr<Image>& image);
  void restore_offers(Cluster& cluster);
  void add_holder(const std::string& image, const std::string& host,
                  const std::shared_ptr<Frozen>& frozen);
  void drop_holder(const std::string& image, const std::string& host);
  // The reservation's parts on other hosts are used up. mutex_ is held by the caller.
  static std::vector<RemoteThaw> plan_elsewhere(
      Vm& parent, Reservation& reservation, unsigned count, const std::string& ticket,
      const std::map<std::string, std::string>& parameters, uint32_t call);
  Result<void> thaw_on(RemoteThaw& plan, const std::shared_ptr<Frozen>& frozen, bool had_agent,
                       bool wait);
  unsigned bring_up_elsewhere(std::vector<RemoteThaw>& plans, const std::shared_ptr<Frozen>& frozen,
                              bool had_agent, bool wait, Steps& steps, int64_t since_ns,
                              const std::string& ticket);
  void give_up(const RemoteThaw& plan, const std::string& ticket, const std::string& why);
  void mark_lost(const std::string& ticket, const std::vector<std::string>& vms);
  void give_up_on_gone_hosts();
  unsigned kill_elsewhere(const TicketPtr& ticket);
  void owe(const std::string& host, const std::string& method, const nlohmann::json& content,
           const std::string& file = "");
  void owe_ended(const std::string& host, const std::string& ticket, const std::string& vm,
                 const std::string& how, int status, const std::string& file);

  // host_remote.cc
  // Room that this host has given to another one, until its clones come or the deadline.
  struct GivenRoom {
    std::string from;
    std::string ticket;
    int64_t deadline_ns = 0;  // monotonic
    MachineConfig config;
    std::shared_ptr<BootFiles> boot;
    Reservation reservation;  // all its shells are for clones
    std::vector<std::string> vms;
    bool used = false;  // its clones are being brought up
  };
  void serve_others(Cluster& cluster);
  Result<std::string> kernel_file(const std::string& from, const std::string& hash);
  Result<peer::Message> serve_reserve(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_give_back(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_thaw(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_kill(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_forget(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_kernel(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_ended(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_removed(const std::string& from, const peer::Message& message);
  Result<peer::Message> serve_release(const std::string& from, const peer::Message& message);
  VmPtr clone_for(const std::string& from, const nlohmann::json& json, const MachineConfig& config);
  Result<std::shared_ptr<Frozen>> thaw_ground(Cluster& cluster, GivenRoom& given,
                                              const peer::Message& message);
  void feed_lazy_file(Cluster& cluster, const std::shared_ptr<LazyFile>& file);
  void take_back(const std::shared_ptr<GivenRoom>& given);
  void expire_given_rooms();

  // host_cluster.cc
  std::mutex cluster_change_mutex_;  // one `init` or `join` at a time, to its end
  Result<void> open_cluster();       // if this host is in one
  Result<void> start_cluster(const ClusterConfig& config);
  Result<void> deliver(const Outbox::Item& item);
  Result<void> enter_cluster(const ClusterConfig& config);
  Result<void> reconcile();
  Kept what_is_kept();  // for the others, in the directory
  void end_given_up(const VmPtr& vm);
  void forget_removed(Cluster& cluster, const std::string& id);
  void tick_cluster();
  void make_room_in_cache(Cluster& cluster);

  // host_thaw.cc
  VmPtr new_clone(const Vm& parent, const Frozen& frozen, unsigned index, unsigned count,
                  const std::string& ticket, const std::map<std::string, std::string>& parameters);
  // `count` clones of `parent`, named after it, each with its part of the reservation's room, among
  // the VMs. mutex_ is held by the caller.
  std::vector<VmPtr> new_clones(Vm& parent, const Frozen& frozen, Reservation& reservation,
                                unsigned count, const std::string& ticket,
                                const std::map<std::string, std::string>& parameters,
                                uint32_t call);
  static void list_clones(Ticket& ticket, const std::vector<VmPtr>& clones,
                          const std::vector<RemoteThaw>& elsewhere);
  Result<std::shared_ptr<QemuProcess>> start_shell(const MachineConfig& config,
                                                   const Ground& ground, const std::string& name,
                                                   const std::string& mac);
  void note_process(const std::shared_ptr<QemuProcess>& process);
  // Loads and continues `vm` in `shell` (null or dead: a new one), connected. One more try with a
  // new shell if QEMU dies meanwhile. `loaded` is called before each `cont`.
  Result<void> thaw(
      const VmPtr& vm, std::shared_ptr<QemuProcess> shell, const std::shared_ptr<Frozen>& frozen,
      const std::function<void()>& loaded = [] {});
  Result<void> thaw_once(const VmPtr& vm, const std::shared_ptr<QemuProcess>& shell,
                         const std::shared_ptr<Frozen>& frozen,
                         const std::function<void()>& loaded);
  // Tells the guest who it is; on success the VM runs. `had_agent`: the frozen guest's agent had
  // answered.
  // `as_parent`: it is told that it is the parent of that fork; its own identity stays.
  struct ParentOf {
    std::string ticket;
    unsigned count = 0;
    uint32_t call = 0;  // of its guest, that asked for the fork
  };
  Result<void> announce(const VmPtr& vm, bool had_agent,
                        const std::optional<ParentOf>& as_parent = {});
  Identity identity_of(const Vm& vm, const std::optional<ParentOf>& as_parent) const;
  // Thaws clones of `frozen` into shells[1..] (may be shorter), announces them, and gives those
  // that came up. Each failure is logged and ends its clone as "lost". Without `wait` a clone has
  // come up when its QEMU runs, and is announced on the workers' time.
  unsigned bring_up(const std::vector<VmPtr>& clones,
                    std::vector<std::shared_ptr<QemuProcess>> shells,
                    const std::shared_ptr<Frozen>& frozen, bool had_agent, Steps& steps,
                    int64_t since_ns, bool wait = true);
  void clone_lost(const VmPtr& vm, const Error& error);  // operation held

  // host_fork.cc
  struct ForkPlan {
    unsigned count = 0;
    unsigned minimum = 0;
    std::string ticket;
    uint32_t call = 0;  // of the guest, that asks for it
    std::map<std::string, std::string> parameters;
    bool wait_for_ready = true;
  };
  struct ForkOutcome {
    std::shared_ptr<Frozen> frozen;
    std::vector<VmPtr> clones;              // here
    std::vector<nlohmann::json> elsewhere;  // clones on other hosts, as they describe them
    Steps steps;
    std::vector<std::string> undone;
  };
  // Vm::operation is held by the caller.
  Result<ForkOutcome> fork_vm(const VmPtr& vm, std::unique_ptr<Reservation> reservation,
                              const ForkPlan& plan, Steps steps);
  // `undone`: what the agent could not do before the freeze.
  Result<std::shared_ptr<Frozen>> freeze_and_move(const VmPtr& vm, Reservation& reservation,
                                                  bool had_agent, const ForkPlan& plan,
                                                  Steps& steps, std::vector<std::string>& undone);
  // Fails if the old QEMU cannot go on.
  Result<void> undo_freeze(const VmPtr& vm, const std::shared_ptr<QemuProcess>& old, bool stopped,
                           bool had_agent);
  Result<void> restore_parent(const VmPtr& vm, const std::shared_ptr<Frozen>& frozen);
  // `ticket`: the id that the ticket of it will have.
  Result<std::unique_ptr<Reservation>> make_reservation(const VmPtr& vm, unsigned count,
                                                        unsigned minimum, const Placing& placing,
                                                        const std::string& ticket);
  Result<std::vector<std::shared_ptr<QemuProcess>>> start_shells(const MachineConfig& config,
                                                                 const Ground& ground,
                                                                 unsigned count,
                                                                 const std::string& name,
                                                                 const std::string& mac);
  Result<nlohmann::json> fork_locked(const VmPtr& vm, const ForkRequest& request);

  // host_tickets.cc
  Result<TicketPtr> reserve_ticket(const VmPtr& vm, unsigned count, unsigned minimum,
                                   const Placing& placing, bool hierarchical);
  static std::string new_ticket_id();
  TicketPtr new_ticket(const std::string& id, const Vm& owner, unsigned requested, unsigned granted,
                       bool hierarchical);
  // Takes the reservation out: the ticket is `forked` from now on.
  Result<TicketPtr> use_ticket(const std::string& id, const Vm& user,
                               std::unique_ptr<Reservation>& reservation);
  void save(const Ticket& ticket);
  void save_again();                          // what the record did not take: the disk was full
  void drop_ticket(const TicketPtr& ticket);  // spent: record, results and ended clones go
  void clone_ended(const Vm& vm);
  Result<TicketPtr> joinable(const std::string& id, const std::string& owner);  // "": the host asks
  void when_ended(const TicketPtr& ticket, int64_t timeout_ms, std::function<void()> wake);
  unsigned kill_clones(const TicketPtr& ticket);  // how many were ended
  void end_killed(const std::vector<VmPtr>& clones);
  // As a guest kills by its ticket: if it was not used yet, it is given back.
  Result<unsigned> kill_or_give_back(const std::string& id, const std::string& owner);
  std::string result_path(const std::string& ticket, unsigned index) const;
  void expire_tickets();

  // host_guest.cc
  GuestLink::Callbacks link_callbacks(const VmPtr& vm);
  void guest_hello(const VmPtr& vm);
  void guest_call(const VmPtr& vm, std::shared_ptr<GuestCall> call);
  void next_call(const VmPtr& vm);
  void serve_call(const VmPtr& vm, const std::shared_ptr<GuestCall>& call);
  Result<void> call_clone(const VmPtr& vm, GuestCall& call);
  Result<void> call_checkpoint(const VmPtr& vm, GuestCall& call);
  Result<void> call_create(const VmPtr& vm, GuestCall& call);
  Result<void> call_exit(const VmPtr& vm, GuestCall& call);
  Result<void> call_join(const VmPtr& vm, const std::shared_ptr<GuestCall>& call);
  void answer_join(const TicketPtr& ticket, GuestCall& call);

  // host_snapshots.cc
  Result<std::shared_ptr<Frozen>> open_snapshot(const std::string& name);
  Result<nlohmann::json> run_snapshot(const RunRequest& request);
  Result<nlohmann::json> write_snapshot(const Vm& vm, const Frozen& frozen,
                                        const std::string& name);
  Result<void> not_fetched_by_others(const std::string& folder, const std::string& what) const;

  Context context_;
  std::mutex mutex_;
  std::condition_variable changed_;  // a VM's state or agent, a frozen machine settled
  std::map<std::string, VmPtr> vms_;
  std::map<std::string, TicketPtr> tickets_;
  std::map<pid_t, std::weak_ptr<QemuProcess>> processes_;
  std::map<std::string, std::weak_ptr<LazyFile>> image_disks_;  // by image name
  std::map<std::string, std::weak_ptr<BootFiles>> boot_files_;  // by folder
  std::map<std::string, std::weak_ptr<Frozen>> snapshots_;      // by name, while in use
  std::map<std::string, std::weak_ptr<Frozen>> frozen_;         // by id
  std::set<std::string> snapshots_being_made_;
  struct Checkpoint {
    std::string owner;  // VM id
    std::shared_ptr<Frozen> frozen;
    uint32_t call = 0;  // that asked for it and waits in the frozen guest
  };
  std::map<std::string, Checkpoint> checkpoints_;
  std::map<std::string, std::shared_ptr<GivenRoom>> given_rooms_;  // by id
  std::map<std::string, std::shared_ptr<Frozen>> holders_;         // "IMAGE.HOST" that fetches it
  std::mutex offers_mutex_;   // one offer at a time; before mutex_
  std::mutex kernels_mutex_;  // guards the next two, and fetching kernels; before mutex_
  std::map<std::string, std::string> kernel_hashes_;  // by path, size and time
  std::map<std::string, std::string> kernel_paths_;   // by hash
  std::function<void(peer::Connection&)> api_session_;
  // Pages that came unasked go into lazyfs under a shared lock, while this is true.
  std::shared_mutex feed_mutex_;
  bool feeding_ = true;
  int64_t reconcile_at_ns_ = 0;              // the ticker's
  std::atomic<bool> images_changed_ = true;  // since what_is_kept() listed them
  Kept::mapped_type kept_images_;            // its own
  int64_t save_again_at_ns_ = 0;             // the ticker's
  std::set<std::string> unsaved_vms_, unsaved_tickets_;
  std::atomic<bool> reconciling_ = false;
  // Only during start(): what the record said.
  std::map<std::string, std::shared_ptr<Frozen>> restored_;
  std::map<std::string, nlohmann::json> records_;  // of VMs
  std::map<std::string, Ground> grounds_;          // of VMs of a first boot
  std::vector<std::shared_ptr<Frozen>> unsettled_;
  std::set<std::string> undone_forks_;  // their tickets
  std::string qemu_version_;
  AcceleratorChoice accelerator_;
  std::unique_ptr<Workers> workers_;
  std::unique_ptr<Settler> settler_;
  std::atomic<bool> stopping_ = false;  // set under mutex_
  // VMs whose QEMU did not answer at the start; filled before the thread begins, then the thread's.
  std::vector<VmPtr> silent_;
  std::thread silent_thread_;
  std::thread ticker_;
};

}  // namespace snow
