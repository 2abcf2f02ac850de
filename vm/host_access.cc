// What goes on in a VM: programs, files, the console.
#include "base/file.h"
#include "vm/host_impl.h"

namespace snow {

Result<std::shared_ptr<QemuProcess>> HostImpl::with_agent(const VmPtr& vm) {
  SNOW_ASSIGN(const Live now, live(vm));
  if (now.state == VmState::paused) {
    return fail(Code::wrong_state, "VM '{}': it is paused; `snow resume {}` first", vm->name,
                vm->name);
  }
  if (!now.agent || now.process->link() == nullptr) {
    return fail(Code::no_agent,
                "VM '{}': its agent has not answered; it is still booting, or its image has none "
                "(docs/guest.md)",
                vm->name);
  }
  return now.process;
}

Result<std::unique_ptr<GuestStream>> HostImpl::exec(const std::string& name,
                                                    const ExecRequest& request) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(const auto process, with_agent(vm));
  ExecRequest with_environment = request;
  with_environment.environment.insert(vm->environment.begin(), vm->environment.end());
  return process->link()->exec(with_environment);
}

Result<std::unique_ptr<GuestStream>> HostImpl::read_file(const std::string& name,
                                                         const std::string& path) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(const auto process, with_agent(vm));
  return process->link()->read_file(path);
}

Result<std::unique_ptr<GuestStream>> HostImpl::write_file(const std::string& name,
                                                          const std::string& path, unsigned mode) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(const auto process, with_agent(vm));
  return process->link()->write_file(path, mode);
}

Result<std::string> HostImpl::console_log(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find(name));
  if (auto log = context_.consoles->log(vm->id)) return log;
  return ConsoleHub::read_log(console_path(*vm));
}

Result<std::unique_ptr<Host::ConsoleSession>> HostImpl::console(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  return context_.consoles->open(vm->id);
}

}  // namespace snow
