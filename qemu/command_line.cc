// The command line. Whatever is here shapes the virtual hardware and so the saved machine state: a
// change makes machines that were frozen before it impossible to thaw.
#include "base/file.h"
#include "qemu/host_clock.h"
#include "qemu/machine.h"

namespace snow {

namespace {

// channel::kPortName of guest/channel, which lies in a layer of its own.
constexpr const char* kAgentPort = "org.thundersnow.agent.0";

// TCG's translation buffer, MiB. It is address space: a clone pays for what it translates. It is
// shared out among the vCPUs.
constexpr unsigned kTcgBufferMib = 64;
constexpr unsigned kTcgBufferPerCpuMib = 64;

using Arguments = std::vector<std::string>;

void add(Arguments& arguments, std::initializer_list<std::string> more) {
  arguments.insert(arguments.end(), more);
}

// QEMU's option lists double a comma that is part of a value.
std::string escape(const std::string& value) {
  std::string escaped;
  for (const char byte : value) {
    escaped += byte;
    if (byte == ',') escaped += ',';
  }
  return escaped;
}

// The same device on either machine's bus: virtio-mmio on microvm (legacy by QEMU's default), PCI
// on q35. Legacy virtio because the state of a modern device holds 1024 queues, 44 KB, used or not:
// with four devices that made a pause on microvm 3 ms longer, on q35 2 ms.
std::string virtio(const MachineConfig& config, const std::string& kind) {
  if (config.machine == MachineType::microvm) return "virtio-" + kind + "-device";
  return "virtio-" + kind + "-pci,disable-modern=on,disable-legacy=off";
}

constexpr const char* kCpu = "host,migratable=on";
// The paravirtual kind of KVM refuses the register that this feature stands for (MSR 0x10a), and
// QEMU aborts.
constexpr const char* kCpuOfParavirtualKvm = "host,migratable=on,arch-capabilities=off";

bool has_hardware_kvm() {
  static const bool has =
      choose_accelerator(read_file("/proc/cpuinfo").value_or(""), 0).accelerator ==
      Accelerator::kvm;
  return has;
}

// mem-merge and dump-guest-core: no KSM over private pages, no guest memory in a core dump.
// suppress-vmdesc: the loader expects no description after the state; there is none.
void add_machine(Arguments& arguments, const MachineConfig& config) {
  std::string machine;
  if (config.machine == MachineType::microvm) {
    // With ACPI Debian's kernel finds the virtio-mmio devices and powers off. RTC: the time of day.
    machine = "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,pcie=off,usb=off";
  } else {
    machine = "q35,smm=off,vmport=off,hpet=off,sata=off,smbus=off,usb=off";
  }
  add(arguments, {"-machine", machine + ",memory-backend=ram,mem-merge=off,dump-guest-core=off"
                                        ",suppress-vmdesc=on"});
  if (config.accelerator == Accelerator::kvm) {
    add(arguments, {"-accel", "kvm", "-cpu", has_hardware_kvm() ? kCpu : kCpuOfParavirtualKvm});
  } else {
    const unsigned buffer = kTcgBufferMib + kTcgBufferPerCpuMib * config.cpus;
    // Without la57 the guest's page walks are one level shorter.
    add(arguments,
        {"-accel", fmt::format("tcg,thread=multi,tb-size={}", buffer), "-cpu", "max,la57=off"});
  }
  add(arguments, {"-smp", std::to_string(config.cpus)});
}

void add_memory(Arguments& arguments, const MachineConfig& config, Launch::Kind kind) {
  add(arguments,
      {"-m", fmt::format("{}M", config.memory_bytes >> 20), "-object",
       fmt::format("memory-backend-file,id=ram,size={},mem-path={},share={},prealloc=off",
                   config.memory_bytes, JailPaths::kMemory,
                   kind == Launch::Kind::boot ? "on" : "off")});
}

// A qcow2 overlay that QEMU writes over a raw file that nobody writes. no-flush: the guest's flush
// reaches the host's page cache, not its disk, and so does the flush that a freeze waits for; a VM
// does not outlive its host's crash. Locks are off on the raw file (lazyfs has none).
void add_disk(Arguments& arguments, const MachineConfig& config) {
  if (!config.has_disk) return;
  add(arguments,
      {"-blockdev",
       fmt::format("driver=file,node-name=disk-file,filename={},read-only=on,locking=off,"
                   "aio=threads,cache.direct=off,cache.no-flush=on",
                   JailPaths::kDisk),
       "-blockdev", "driver=raw,node-name=disk,file=disk-file,read-only=on", "-blockdev",
       fmt::format("driver=file,node-name=overlay-file,filename={},aio=threads,discard=unmap,"
                   "cache.direct=off,cache.no-flush=on",
                   JailPaths::kOverlay),
       "-blockdev",
       "driver=qcow2,node-name=overlay,file=overlay-file,backing=disk,discard=unmap,"
       "detect-zeroes=off,cache.direct=off,cache.no-flush=on",
       "-device",
       virtio(config, "blk") + ",drive=overlay,id=disk0" +
           (config.has_kernel ? "" : ",bootindex=0")});
}

void add_devices(Arguments& arguments, const MachineConfig& config, const Launch& launch) {
  add(arguments,
      {"-object", "rng-builtin,id=rng0", "-device", virtio(config, "rng") + ",rng=rng0"});
  add(arguments,
      {"-chardev", fmt::format("socket,id=agent,path={},server=on,wait=off", JailPaths::kAgent),
       "-device", virtio(config, "serial") + ",id=serial0,max_ports=2", "-device",
       fmt::format("virtserialport,bus=serial0.0,nr=1,chardev=agent,name={}", kAgentPort),
       "-chardev", fmt::format("socket,id=console,path={},server=on,wait=off", JailPaths::kConsole),
       "-serial", "chardev:console"});
  if (config.network == Network::user) {
    // romfile: no network boot, and no need for its ROM to be installed.
    const bool pci = config.machine == MachineType::q35;
    add(arguments,
        {"-netdev", "user,id=net0", "-device",
         virtio(config, "net") + ",netdev=net0" +
             (launch.mac.empty() ? "" : ",mac=" + escape(launch.mac)) + (pci ? ",romfile=" : "")});
  }
  // The guest's panic becomes the event GUEST_PANICKED and the machine pauses.
  add(arguments, {"-device", "pvpanic", "-action", "panic=pause"});
  if (config.machine == MachineType::q35) add(arguments, {"-device", "vmgenid,guid=auto"});
  // Never inflated: only for the guest to tell which pages are free, which then are no part of the
  // next image. On a private mapping such a page shows the frozen image's old content when it is
  // used again, not zeros. With page-poison=off a guest that would mind (init_on_free) does not
  // tell.
  add(arguments, {"-device", virtio(config, "balloon") +
                                 ",id=balloon0,free-page-reporting=on,page-poison=off"});
}

// Under TCG Linux calibrates its clock against an emulated timer, which fails on a busy host: a
// microvm, which has no second timer, then hangs for ever, and later the watchdog distrusts the
// clock. So it is told the rate (TCG passes the host's counter through) and that it can be trusted.
// First, so that the image's own options win.
std::string kernel_append(const MachineConfig& config) {
  if (config.accelerator != Accelerator::tcg) return config.append;
  return fmt::format("tsc=reliable tsc_early_khz={}{}{}", host_tsc_khz(),
                     config.append.empty() ? "" : " ", config.append);
}

}  // namespace

std::vector<std::string> command_line(const std::string& qemu, const MachineConfig& config,
                                      const Launch& launch) {
  Arguments arguments = {qemu, "-name", "guest=" + escape(launch.name)};
  if (!launch.uuid.empty()) add(arguments, {"-uuid", launch.uuid});
  add(arguments, {"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-sandbox",
                  "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  // The state is loaded without its configuration section (machine_state.h), and the loader says by
  // events how far it is. It does not have the guest announce itself on its network: no switch
  // learns anything from it behind a user network, and the guest would do that before all else,
  // five times over (a quarter of what it ran between the thaw and its agent's turn).
  add(arguments, {"-global", "migration.send-configuration=off", "-global", "migration.x-events=on",
                  "-global", "migration.announce-rounds=0"});
  add_machine(arguments, config);
  add_memory(arguments, config, launch.kind);
  if (config.has_kernel) {
    add(arguments, {"-kernel", JailPaths::kKernel});
    if (config.has_initrd) add(arguments, {"-initrd", JailPaths::kInitrd});
    const std::string append = kernel_append(config);
    if (!append.empty()) add(arguments, {"-append", append});
  }
  add_disk(arguments, config);
  add_devices(arguments, config, launch);
  add(arguments, {"-qmp", fmt::format("unix:{},server=on,wait=off", JailPaths::kQmp), "-S"});
  if (launch.kind == Launch::Kind::thaw) add(arguments, {"-incoming", "defer"});
  return arguments;
}

}  // namespace snow
