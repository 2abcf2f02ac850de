#include "cli/tree.h"

#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace snow::cli {
namespace {

constexpr const char* kFooter =
    "Exit codes are those of the error's kind (man snow); exec passes the guest's on.";

// Builds the tree over one Options; `chosen` is the command that was named.
class Tree {
 public:
  Tree() : app_("Fork running virtual machines.", "snow") {
    app_.require_subcommand(1);
    app_.fallthrough();
    app_.footer(kFooter);
    app_.add_option("--socket", options.socket, "snowd's socket (SNOW_SOCKET)")
        ->type_name("PATH")
        ->envname("SNOW_SOCKET");
    app_.add_option("-o,--output", options.format, "table, json or name")
        ->type_name("FORMAT")
        ->transform(CLI::CheckedTransformer(std::map<std::string, Format>{{"table", Format::table},
                                                                          {"json", Format::json},
                                                                          {"name", Format::name}},
                                            CLI::ignore_case)
                        .description(""));
    add_vms();
    add_family();
    add_images();
    add_snapshots();
    add_guest();
    add_host();
    add_cluster();
  }

  CLI::App& app() { return app_; }

  Options options;
  Command chosen = nullptr;

 private:
  CLI::App* add(CLI::App& above, const char* name, const char* description, Command command) {
    CLI::App* made = above.add_subcommand(name, description);
    if (command != nullptr) made->callback([this, command] { chosen = command; });
    return made;
  }
  CLI::App* add(const char* name, const char* description, Command command) {
    return add(app_, name, description, command);
  }
  static CLI::Option* word(CLI::App* app, const char* name, std::string& into,
                           const char* description) {
    return app->add_option(name, into, description)->type_name("");
  }
  void names(CLI::App* app, const char* name) {
    app->add_option(name, options.names, "one or several")->required()->type_name("");
  }
  void vm(CLI::App* app) { word(app, "VM", options.vm, "id, start of an id, or name")->required(); }
  void count(CLI::App* app, const char* description) {
    app->add_option("-n,--count", options.count, description)
        ->type_name("N")
        ->each([this](const std::string&) { options.has_count = true; });
  }
  void append(CLI::App* app) {
    app->add_option("--append", options.append, "kernel command line")
        ->type_name("TEXT")
        ->each([this](const std::string&) { options.has_append = true; });
  }
  void pairs(CLI::App* app, const char* name, std::vector<std::string>& into,
             const char* description) {
    // One value each time, so that what follows is not taken as well.
    app->add_option(name, into, description)
        ->type_name("K=V")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }

  void placing(CLI::App* app) {
    const auto flag = [&](const char* name, const char* place, const char* description) {
      return app->add_flag_callback(
          name, [this, place] { options.place = place; }, description);
    };
    CLI::Option* spread = flag("--spread", "spread", "evenly over the cluster's hosts");
    CLI::Option* pack = flag("--pack", "pack", "the parent's host first, then the fewest others");
    CLI::Option* local = flag("--local", "local", "on the parent's host only");
    spread->excludes(pack)->excludes(local);
    pack->excludes(local);
    app->add_option("--hosts", options.hosts, "only on these, as in a,b")
        ->type_name("HOSTS")
        ->expected(1)
        ->delimiter(',')
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }

  void add_vms();
  void add_family();
  void add_images();
  void add_snapshots();
  void add_guest();
  void add_host();
  void add_cluster();

  CLI::App app_;
};

void Tree::add_vms() {
  CLI::App* run = add("run", "start a VM of an image, or clones of a snapshot", &cli::run);
  word(run, "IMAGE", options.image, "its image");
  run->add_option("--from", options.from, "start clones of this snapshot")->type_name("SNAPSHOT");
  count(run, "with --from: how many");
  run->add_option("--name", options.name, "its name")->type_name("NAME");
  run->add_option("-m,--memory", options.memory, "as in 512M or 2G")->type_name("SIZE");
  run->add_option("-c,--cpus", options.cpus, "virtual CPUs")->type_name("N");
  run->add_option("--kernel", options.kernel, "boot this kernel")->type_name("FILE");
  run->add_option("--initrd", options.initrd, "with this initrd")->type_name("FILE");
  append(run);
  run->add_option("--accel", options.accelerator, "auto, kvm or tcg")->type_name("WHICH");
  run->add_option("--net", options.network, "none or user")->type_name("WHICH");
  run->add_option("--machine", options.machine, "auto, microvm or q35")->type_name("WHICH");
  pairs(run, "-e,--env", options.environment, "for programs in the guest");
  run->add_flag("-d,--detach", options.detach, "do not wait for the guest's agent");
  run->add_option("--wait", options.wait_seconds, "for the agent at most so long (60)")
      ->type_name("SECONDS");

  CLI::App* ps = add("ps", "list VMs", &cli::ps);
  ps->add_flag("-a,--all", options.all, "ended ones too");
  names(add("inspect", "show all that is known of VMs", &cli::inspect), "VM");
  names(add("pause", "stop the virtual CPUs", &cli::pause), "VM");
  names(add("resume", "let them go on", &cli::resume), "VM");
  CLI::App* stop = add("stop", "ask guests to shut down, then kill them", &cli::stop);
  names(stop, "VM");
  stop->add_option("-t,--timeout", options.timeout_seconds, "before the kill (10)")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 86400.0));
  names(add("kill", "end VMs at once", &cli::kill), "VM");
  CLI::App* of_vm = add("vm", "VMs in a cluster", nullptr);
  of_vm->require_subcommand(1);
  CLI::App* detach =
      add(*of_vm, "detach", "fetch all that is still on other hosts", &cli::vm_detach);
  names(detach, "VM");
  detach->add_option("-t,--timeout", options.timeout_seconds, "wait at most so long")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 86400.0));
  CLI::App* rm = add("rm", "forget ended VMs and their disks", &cli::rm);
  names(rm, "VM");
  rm->add_flag("-f,--force", options.force, "running ones too");
}

void Tree::add_family() {
  add("tree", "draw the family tree of clones", &cli::tree);
  CLI::App* fork = add("fork", "clone a running VM", &cli::fork);
  vm(fork);
  count(fork, "how many clones (1)");
  fork->add_option("--min", options.minimum, "accept fewer, but not fewer than this")
      ->type_name("N");
  fork->add_option("--ticket", options.ticket, "use what `snow reserve` reserved")
      ->type_name("TICKET");
  pairs(fork, "-p,--param", options.parameters, "for the clones to read");
  placing(fork);
  fork->add_flag("--no-wait", options.no_wait, "do not wait for the clones' agents");
  fork->add_flag("-v,--verbose", options.verbose, "show the time of each step");

  CLI::App* reserve = add("reserve", "reserve room and start waiting QEMUs", &cli::reserve);
  vm(reserve);
  count(reserve, "for how many clones (1)");
  reserve->add_option("--min", options.minimum, "accept fewer, but not fewer than this")
      ->type_name("N");
  placing(reserve);
  CLI::App* ticket = add("ticket", "tickets of forks", nullptr);
  ticket->require_subcommand(1);
  add(*ticket, "ls", "list them", &cli::ticket_ls);
  names(add(*ticket, "rm", "give unused ones back", &cli::ticket_rm), "TICKET");
  word(add(*ticket, "kill", "kill all clones of one", &cli::ticket_kill), "TICKET", options.ticket,
       "of the fork")
      ->required();
  CLI::App* join = add("join", "wait for the clones of a ticket and their results", &cli::join);
  word(join, "TICKET", options.ticket, "of the fork")->required();
  join->add_option("-t,--timeout", options.timeout_seconds, "wait at most so long")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 604800.0));
}

void Tree::add_images() {
  CLI::App* image = add("image", "images", nullptr);
  image->require_subcommand(1);
  CLI::App* import = add(*image, "import", "make an image of files", &cli::image_import);
  word(import, "FILE", options.file, "a disk: raw, qcow2, vmdk, ...");
  import->add_option("--name", options.name, "the image's name")->required()->type_name("NAME");
  import->add_option("--kernel", options.kernel, "its kernel")->type_name("FILE");
  import->add_option("--initrd", options.initrd, "its initrd")->type_name("FILE");
  append(import);
  import->add_option("-m,--memory", options.memory, "default of its VMs")->type_name("SIZE");
  import->add_option("-c,--cpus", options.cpus, "default of its VMs")->type_name("N");
  add(*image, "ls", "list them", &cli::image_ls);
  word(add(*image, "show", "show one", &cli::image_show), "IMAGE", options.name, "its name")
      ->required();
  names(add(*image, "rm", "remove some", &cli::image_rm), "IMAGE");
}

void Tree::add_snapshots() {
  const auto vm_and_name = [this](CLI::App* app, bool required) {
    word(app, "VM", options.vm, "id, start of an id, or name")->required(required);
    word(app, "NAME", options.name, "the snapshot's name")->required(required);
  };
  // `snow snapshot VM NAME` is `snow snapshot create VM NAME`.
  CLI::App* snapshot = add("snapshot", "keep a VM as it is now, or manage snapshots", nullptr);
  vm_and_name(snapshot, false);
  snapshot->require_subcommand(0, 1);
  snapshot->callback([this, snapshot] {
    if (!snapshot->get_subcommands().empty()) return;
    if (options.name.empty()) {
      throw CLI::ValidationError("snapshot", "give VM and NAME, or one of ls, show, rm");
    }
    chosen = &cli::snapshot_create;
  });
  vm_and_name(add(*snapshot, "create", "keep a VM as it is now", &cli::snapshot_create), true);
  add(*snapshot, "ls", "list them", &cli::snapshot_ls);
  word(add(*snapshot, "show", "show one", &cli::snapshot_show), "SNAPSHOT", options.name,
       "its name")
      ->required();
  names(add(*snapshot, "rm", "remove some", &cli::snapshot_rm), "SNAPSHOT");
}

void Tree::add_guest() {
  CLI::App* exec = add("exec", "run a program in a guest; its exit code is passed on", &cli::exec);
  vm(exec);
  exec->add_option("COMMAND", options.command, "the program; options of its own behind --")
      ->type_name("");
  exec->add_flag("-i,--interactive", options.interactive, "pass standard input");
  exec->add_flag("-t,--tty", options.terminal, "on a terminal");
  exec->add_option("-u,--user", options.user, "as this user (root)")->type_name("NAME");
  exec->add_option("-w,--workdir", options.directory, "in this folder (/)")->type_name("PATH");
  pairs(exec, "-e,--env", options.environment, "a variable");
  vm(add("console", "the guest's serial console", &cli::console));
  CLI::App* logs = add("logs", "what the guest printed on its console", &cli::logs);
  vm(logs);
  logs->add_flag("-f,--follow", options.follow, "go on with what comes");
  CLI::App* cp =
      add("cp", "copy files: VM:PATH and a local path, or - for standard input/output", &cli::copy);
  word(cp, "FILE", options.source, "from")->required();
  word(cp, "DESTINATION", options.destination, "to")->required();
  cp->add_flag("-r,--recursive", options.recursive, "a folder (by tar in the guest)");
}

void Tree::add_host() {
  add("doctor", "can this machine run Thundersnow?", &cli::doctor);
  CLI::App* events = add("events", "print events as they happen", &cli::events);
  events->add_option("--after", options.after, "begin behind this number")->type_name("SEQ");
  add("info", "the host: limits, use, versions", &cli::info);
  add("version", "versions of snow and snowd", &cli::version);
  CLI::App* completion = add("completion", "print a completion script", nullptr);
  word(completion, "SHELL", options.shell, "bash, zsh or fish")->required();
}

void Tree::add_cluster() {
  const auto member = [this](CLI::App* app) {
    app->add_option("--address", options.address, "by which other hosts reach this one")
        ->type_name("IP[:PORT]")
        ->required();
    app->add_option("--host-name", options.host_name, "this host's (its hostname)")
        ->type_name("NAME");
  };
  CLI::App* cluster = add("cluster", "make or join a cluster of hosts", nullptr);
  cluster->require_subcommand(1);
  CLI::App* init = add(*cluster, "init", "make a cluster of this host", &cli::cluster_init);
  member(init);
  init->add_option("--name", options.name, "the cluster's (snow)")->type_name("NAME");
  init->add_option("--etcd", options.etcd, "etcd's client port, once for each of its members")
      ->type_name("URL")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  init->add_flag("--plain", options.plain, "no TLS between hosts: on a network of their own only");
  CLI::App* token =
      add(*cluster, "token", "make a token for one host to join", &cli::cluster_token);
  token->add_option("--ttl", options.ttl_seconds, "it holds so long (3600)")->type_name("SECONDS");
  CLI::App* join = add(*cluster, "join", "make this host a member", &cli::cluster_join);
  member(join);
  CLI::Option* word = join->add_option("--token", options.token,
                                       "of `snow cluster token`; - reads it (SNOW_JOIN_TOKEN)")
                          ->type_name("TOKEN");
  join->add_option("--token-file", options.token_file, "a file that has it; - is standard input")
      ->type_name("FILE")
      ->excludes(word);

  CLI::App* host = add("host", "the cluster's hosts", nullptr);
  host->require_subcommand(1);
  add(*host, "ls", "list them", &cli::host_ls);
  Tree::word(add(*host, "show", "show one", &cli::host_show), "HOST", options.name, "id or name")
      ->required();
  CLI::App* drain = add(*host, "drain", "no clones of other hosts any more", &cli::host_drain);
  names(drain, "HOST");
  drain->add_flag("--undo", options.undo, "clones may come again");
  CLI::App* rm = add(*host, "rm", "take hosts out of the cluster for good", &cli::host_rm);
  names(rm, "HOST");
  rm->add_flag("-f,--force", options.force, "although it is alive");
}

void collect(const CLI::App& app, const std::string& path, std::vector<CommandInfo>& into) {
  CommandInfo info{path, app.get_description(), {}, {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_snames()) info.options.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) info.options.push_back("--" + name);
    if (option->get_positional()) info.arguments.push_back(option->get_name(true));
  }
  const auto below = app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* command : below) info.commands.push_back(command->get_name());
  into.push_back(std::move(info));
  for (const CLI::App* command : below) {
    collect(*command, path.empty() ? command->get_name() : path + " " + command->get_name(), into);
  }
}

}  // namespace

Parsed parse_words(std::vector<std::string> words) {
  Tree tree;
  Parsed parsed;
  try {
    std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
    tree.app().parse(std::move(words));
  } catch (const CLI::Success& help) {
    tree.app().exit(help);
    return parsed;
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "snow: {}; see `snow --help`\n", error.what());
    parsed.code = exit_code(Code::usage);
    return parsed;
  }
  parsed.command = tree.chosen;
  parsed.options = std::move(tree.options);
  if (parsed.command == nullptr) {
    if (const auto script = completion_script(parsed.options.shell, all_commands())) {
      fmt::print("{}", *script);
    } else {
      fmt::print(stderr, "snow: {}\n", script.error().message);
      parsed.code = exit_code(script.error().code);
    }
  }
  return parsed;
}

std::vector<CommandInfo> all_commands() {
  Tree tree;
  std::vector<CommandInfo> commands;
  collect(tree.app(), "", commands);
  return commands;
}

}  // namespace snow::cli
