// The program `snow` against a real server with a Host of the API's tests: what it prints where,
// its exit codes, streams.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <fstream>

#include "api/server.h"
#include "api/test_host.h"
#include "base/file.h"
#include "base/process.h"
#include "cli/tree.h"
#include "peer/test_cluster.h"

namespace snow::cli {
namespace {

class SnowTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/snow-cli-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    auto server = Server::start(host_, {folder_ + "/api.sock", "", 64});
    ASSERT_TRUE(server) << server.error().message;
    server_ = *std::move(server);
  }
  void TearDown() override {
    server_.reset();
    remove_all(folder_);
  }

  ProcessOutput snow(std::vector<std::string> words) {
    std::vector<std::string> argv = {SNOW_PROGRAM, "--socket", folder_ + "/api.sock"};
    argv.insert(argv.end(), words.begin(), words.end());
    auto ran = run_process(argv);
    EXPECT_TRUE(ran) << ran.error().message;
    return ran.value_or(ProcessOutput{});
  }

  // Through a shell, for pipes; $SNOW is the program with its socket.
  ProcessOutput shell(const std::string& line) {
    auto ran = run_process({"sh", "-c",
                            fmt::format("SNOW='{} --socket {}/api.sock'; cd {}; {}", SNOW_PROGRAM,
                                        folder_, folder_, line)});
    EXPECT_TRUE(ran) << ran.error().message;
    return ran.value_or(ProcessOutput{});
  }

  std::string folder_;
  TestHost host_;
  std::unique_ptr<Server> server_;
};

TEST_F(SnowTest, FormatsOfLists) {
  ProcessOutput out = snow({"ps"});
  EXPECT_EQ(out.exit_code, 0) << out.standard_error;
  EXPECT_EQ(out.standard_output.find("ID        NAME   STATE"), 0u) << out.standard_output;
  EXPECT_NE(out.standard_output.find("256M"), std::string::npos) << out.standard_output;
  EXPECT_EQ(snow({"ps", "-o", "name"}).standard_output, "web\nweb-1\n");
  EXPECT_EQ(snow({"ps", "-a", "-o", "name"}).standard_output, "web\nweb-1\nweb-2\n");
  out = snow({"-o", "json", "ps"});
  EXPECT_EQ(nlohmann::json::parse(out.standard_output).size(), 2u);
  EXPECT_EQ(snow({"ps", "-o", "xml"}).exit_code, 2);
}

TEST_F(SnowTest, TheFamilyIsDrawn) {
  EXPECT_EQ(snow({"tree"}).standard_output,
            "web  00c0ffee  running\n"
            "├─ web-1  00000001  running\n"
            "└─ web-2  00000002  exited (exited 3)\n");
}

TEST_F(SnowTest, InAClusterTheHostsOfVmsAreShown) {
  host_.in_cluster = true;
  {
    const std::lock_guard lock(host_.mutex);
    host_.waiting_for = "b";
  }
  const std::string out = snow({"ps"}).standard_output;
  EXPECT_NE(out.find("STATE                  HOST"), std::string::npos) << out;
  EXPECT_NE(out.find("running (waits for b)  a "), std::string::npos) << out;
  EXPECT_EQ(snow({"tree"}).standard_output,
            "web  00c0ffee  running (waits for b)  on a\n"
            "├─ web-1  00000001  running (waits for b)  on a\n"
            "└─ web-2  00000002  exited (waits for b) (exited 3)  on a\n");
  EXPECT_NE(snow({"fork", "web", "-n", "2", "-v"}).standard_error.find("  2 clones on host a\n"),
            std::string::npos);
}

// Another host that is said to be alive and cannot be reached.
class OneLostHost : public Neighbours {
 public:
  [[nodiscard]] std::string self() const override { return "h00000000000a"; }
  [[nodiscard]] std::vector<std::string> live() const override { return {"h00000000000b"}; }
  [[nodiscard]] std::string name_of(const std::string&) const override { return "b"; }
  [[nodiscard]] peer::Pool& pool() override { return pool_; }

 private:
  peer::Pool pool_{peer::plain_credentials("h00000000000a"),
                   [](const std::string&) -> Result<peer::Address> {
                     return fail(Code::unavailable, "no way to it");
                   }};
};

TEST_F(SnowTest, WhoDidNotAnswerAListIsNamed) {
  host_.in_cluster = true;
  host_.others = std::make_shared<OneLostHost>();
  ProcessOutput out = snow({"ps", "-o", "name"});
  EXPECT_EQ(out.standard_output, "web\nweb-1\n");
  EXPECT_EQ(out.standard_error, "snow: did not answer in time, so not all is shown: b\n");
  EXPECT_EQ(out.exit_code, 0);
  out = snow({"inspect", "x"});
  EXPECT_EQ(out.exit_code, 12);
  EXPECT_NE(out.standard_error.find("no answer from b"), std::string::npos) << out.standard_error;
  EXPECT_EQ(snow({"inspect", "web", "-o", "name"}).standard_output, "web\n");
}

TEST_F(SnowTest, ErrorsGoToStandardErrorWithTheirCode) {
  ProcessOutput out = snow({"inspect", "x"});
  EXPECT_EQ(out.exit_code, 3);
  EXPECT_EQ(out.standard_output, "");
  EXPECT_EQ(out.standard_error, "snow: VM 'x': no such VM; `snow ps -a` lists them\n");
  EXPECT_EQ(snow({"rm", "web"}).exit_code, 7);
  EXPECT_EQ(snow({"nonsense"}).exit_code, 2);
  EXPECT_EQ(snow({"fork"}).exit_code, 2);
  EXPECT_EQ(snow({"fork", "web", "--param", "x"}).exit_code, 2);
  EXPECT_EQ(snow({"reserve", "web", "-n", "5"}).exit_code, 6);
  const auto gone = run_process({SNOW_PROGRAM, "--socket", folder_ + "/none", "ps"});
  EXPECT_EQ(gone->exit_code, 12);
  EXPECT_NE(gone->standard_error.find("systemctl start snowd"), std::string::npos);
}

TEST_F(SnowTest, SeveralVmsAndOneFailure) {
  const ProcessOutput out = snow({"rm", "-f", "web", "x", "web"});
  EXPECT_EQ(out.exit_code, 3);
  EXPECT_EQ(out.standard_output, "web\nweb\n");
}

TEST_F(SnowTest, RunPassesItsOptions) {
  const ProcessOutput out =
      snow({"run",   "tiny",     "--name",       "web",      "-m",    "512M",  "-c",
            "2",     "--kernel", "boot/vmlinuz", "--append", "quiet", "--env", "A=1",
            "--env", "B=2",      "--net",        "user",     "-o",    "name"});
  // The kernel does not exist: nothing reached the host, and the message names the whole path.
  EXPECT_EQ(out.exit_code, 3);
  EXPECT_NE(out.standard_error.find("/boot/vmlinuz"), std::string::npos) << out.standard_error;
  const ProcessOutput good = snow({"run", "tiny", "-m", "1.5G", "-c", "2", "--append", "quiet",
                                   "--env", "A=1", "--env", "B=2", "--net", "user", "-o", "name"});
  EXPECT_EQ(good.exit_code, 0) << good.standard_error;
  EXPECT_EQ(good.standard_output, "new-1\n");
  const std::lock_guard lock(host_.mutex);
  EXPECT_EQ(host_.last_run.memory_bytes, 3u << 29);
  EXPECT_EQ(host_.last_run.cpus, 2u);
  EXPECT_EQ(host_.last_run.append, "quiet");
  EXPECT_EQ(host_.last_run.environment.size(), 2u);
  EXPECT_EQ(host_.last_run.network, "user");
}

TEST_F(SnowTest, RunFromASnapshot) {
  const ProcessOutput out = snow({"run", "--from", "warm", "-n", "3", "-d", "-o", "name"});
  EXPECT_EQ(out.standard_output, "new-1\nnew-2\nnew-3\n") << out.standard_error;
}

TEST_F(SnowTest, ForkPrintsALinePerClone) {
  ProcessOutput out =
      snow({"fork", "web", "-n", "3", "--param", "K=V", "--min", "2", "-v", "-o", "name"});
  EXPECT_EQ(out.exit_code, 0) << out.standard_error;
  EXPECT_EQ(out.standard_output, "web-1\nweb-2\nweb-3\n");
  EXPECT_NE(out.standard_error.find("not done: no agent"), std::string::npos);
  // In the order in which they happen.
  const size_t stop = out.standard_error.find("stop"), load = out.standard_error.find("load");
  EXPECT_LT(stop, load) << out.standard_error;
  {
    const std::lock_guard lock(host_.mutex);
    EXPECT_EQ(host_.last_fork.count, 3u);
    EXPECT_EQ(host_.last_fork.minimum, 2u);
    EXPECT_EQ(host_.last_fork.parameters.at("K"), "V");
  }
  EXPECT_EQ(snow({"fork", "web", "--ticket", "feed"}).exit_code, 0);
  const std::lock_guard lock(host_.mutex);
  EXPECT_EQ(host_.last_fork.count, 0u);
  EXPECT_EQ(host_.last_fork.ticket, "feed");
}

TEST_F(SnowTest, ClonesHavePlaces) {
  EXPECT_EQ(snow({"fork", "web", "-n", "2", "--spread", "--hosts", "a,b"}).exit_code, 0);
  EXPECT_EQ(snow({"reserve", "web", "-n", "2", "--pack"}).exit_code, 0);
  {
    const std::lock_guard lock(host_.mutex);
    EXPECT_EQ(host_.last_fork.placing.policy, "spread");
    EXPECT_EQ(host_.last_fork.placing.hosts, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(host_.last_placing.policy, "pack");
    EXPECT_TRUE(host_.last_placing.hosts.empty());
  }
  // Only --hosts takes what follows, and only one word.
  EXPECT_EQ(snow({"fork", "--hosts", "b", "web"}).exit_code, 0);
  EXPECT_EQ(snow({"fork", "web", "--spread", "--local"}).exit_code, 2);
  EXPECT_EQ(snow({"fork", "web", "--ticket", "feed", "--spread"}).exit_code, 5);
}

TEST_F(SnowTest, AClusterIsMade) {
  ProcessOutput out =
      snow({"cluster", "init", "--name", "lab", "--host-name", "a", "--address", "10.0.0.1",
            "--etcd", "http://10.0.0.8:2379", "--etcd", "http://10.0.0.9:2379", "--plain"});
  EXPECT_EQ(out.exit_code, 0) << out.standard_error;
  EXPECT_NE(out.standard_output.find("a (this one)"), std::string::npos) << out.standard_output;
  {
    const std::lock_guard lock(host_.mutex);
    EXPECT_EQ(host_.last_cluster.name, "lab");
    EXPECT_EQ(host_.last_cluster.etcd.size(), 2u);
    EXPECT_TRUE(host_.last_cluster.plain);
  }
  EXPECT_EQ(snow({"cluster", "init"}).exit_code, 2);
  out = snow({"cluster", "token", "--ttl", "60"});
  EXPECT_EQ(out.standard_output, "secret\n");
  const std::lock_guard lock(host_.mutex);
  EXPECT_EQ(host_.last_token_seconds, 60u);
}

TEST_F(SnowTest, AJoinTokenNeedNotBeAnArgument) {
  const std::string join = "$SNOW cluster join --address 10.0.0.2 -o name";
  EXPECT_EQ(shell("echo secret | " + join + " --token -").standard_output, "a\nb\n");
  EXPECT_EQ(shell("echo secret | " + join + " --token-file -").standard_output, "a\nb\n");
  EXPECT_EQ(shell("echo secret >t; " + join + " --token-file t").standard_output, "a\nb\n");
  EXPECT_EQ(shell("SNOW_JOIN_TOKEN=secret " + join).standard_output, "a\nb\n");
  EXPECT_EQ(shell("SNOW_JOIN_TOKEN=x " + join + " --token secret").standard_output, "a\nb\n");
  EXPECT_EQ(shell(join + " --token wrong").exit_code, 11);
  EXPECT_EQ(shell(join + " --token a --token-file t").exit_code, 2);
  const ProcessOutput out = shell(join + " </dev/null");
  EXPECT_EQ(out.exit_code, 2);
  EXPECT_NE(out.standard_error.find("snow cluster token"), std::string::npos);
  EXPECT_EQ(shell("head -c 5000 /dev/zero | " + join + " --token -").exit_code, 5);
}

TEST_F(SnowTest, Hosts) {
  EXPECT_EQ(snow({"host", "ls"}).exit_code, 7);
  host_.in_cluster = true;
  const std::string out = snow({"host", "ls"}).standard_output;
  EXPECT_NE(out.find("a (this one)  127.0.0.1:7171  alive  1 of 8  256M of 2G  1 of 16"),
            std::string::npos)
      << out;
  EXPECT_EQ(snow({"host", "ls", "-o", "name"}).standard_output, "a\nb\n");
  EXPECT_NE(snow({"host", "show", "a"}).standard_output.find("exchange"), std::string::npos);
  EXPECT_EQ(snow({"host", "drain", "b"}).standard_output, "b\n");
  EXPECT_TRUE(host_.drained);
  EXPECT_EQ(snow({"host", "drain", "b", "--undo"}).exit_code, 0);
  EXPECT_FALSE(host_.drained);
  EXPECT_EQ(snow({"host", "rm", "b"}).exit_code, 7);
  EXPECT_EQ(snow({"host", "rm", "-f", "c", "b"}).exit_code, 3);
  EXPECT_EQ(snow({"vm", "detach", "web", "-t", "1.5"}).standard_output, "web\n");
  EXPECT_EQ(host_.last_detach_ms, 1500);
}

TEST_F(SnowTest, DoctorLooksAtTheCluster) {
  host_.in_cluster = true;
  host_.address = "127.0.0.1:1";  // nobody listens
  host_.etcd = {"http://127.0.0.1:1"};
  const ProcessOutput out = snow({"doctor"});
  EXPECT_NE(out.standard_output.find("WARN  cluster        'snow', this is host 'a'; 1 of 2 hosts "
                                     "alive; gone: b"),
            std::string::npos)
      << out.standard_output;
  EXPECT_NE(out.standard_output.find("PASS  lease          7.0 s left"), std::string::npos);
  EXPECT_NE(out.standard_output.find("FAIL  etcd           http://127.0.0.1:1: "),
            std::string::npos);
  EXPECT_NE(out.standard_output.find("FAIL  reachable      host 'a' at 127.0.0.1:1: "),
            std::string::npos);
  EXPECT_EQ(out.exit_code, 13);
}

TEST_F(SnowTest, SnapshotsInBothForms) {
  EXPECT_EQ(snow({"snapshot", "web", "cold", "-o", "name"}).standard_output, "cold\n");
  EXPECT_EQ(snow({"snapshot", "create", "web", "cold", "-o", "name"}).standard_output, "cold\n");
  EXPECT_EQ(snow({"snapshot", "ls", "-o", "name"}).standard_output, "warm\n");
  EXPECT_EQ(snow({"snapshot", "show", "warm", "-o", "name"}).standard_output, "warm\n");
  EXPECT_EQ(snow({"snapshot", "rm", "warm"}).standard_output, "warm\n");
  EXPECT_EQ(snow({"snapshot", "rm", "none"}).exit_code, 3);
  EXPECT_EQ(snow({"snapshot", "web"}).exit_code, 2);
  EXPECT_EQ(snow({"snapshot"}).exit_code, 2);
}

TEST_F(SnowTest, TicketsAndJoins) {
  EXPECT_EQ(snow({"reserve", "web", "-n", "2", "-o", "name"}).standard_output, "feed\n");
  EXPECT_EQ(snow({"ticket", "ls", "-o", "name"}).standard_output, "feed\n");
  EXPECT_EQ(snow({"ticket", "rm", "feed"}).exit_code, 0);
  EXPECT_EQ(snow({"ticket", "kill", "feed"}).standard_output, "2\n");
  EXPECT_NE(snow({"join", "feed"}).standard_output.find("aGVsbG8="), std::string::npos);
  EXPECT_EQ(snow({"join", "old"}).exit_code, 15);
}

TEST_F(SnowTest, Images) {
  ASSERT_TRUE(write_file(folder_ + "/disk.raw", "a disk"));
  EXPECT_EQ(shell("$SNOW image import disk.raw --name new -o name").standard_output, "new\n");
  {
    const std::lock_guard lock(host_.mutex);
    EXPECT_EQ(host_.imported, "a disk");
  }
  EXPECT_EQ(snow({"image", "import", "/no/such", "--name", "new"}).exit_code, 3);
  EXPECT_EQ(snow({"image", "ls", "-o", "name"}).standard_output, "tiny\n");
  EXPECT_EQ(snow({"image", "show", "none"}).exit_code, 3);
  EXPECT_EQ(snow({"image", "rm", "tiny"}).exit_code, 7);
}

TEST_F(SnowTest, ExecPassesOutputAndCode) {
  ProcessOutput out = snow({"exec", "web", "--", "echo", "-n", "--", "x"});
  EXPECT_EQ(out.standard_output, "-n -- x\n");
  EXPECT_EQ(out.exit_code, 0);
  EXPECT_EQ(snow({"exec", "web", "echo", "hello"}).standard_output, "hello\n");
  out = snow({"exec", "web", "--", "fail", "went wrong", "3"});
  EXPECT_EQ(out.exit_code, 3);
  EXPECT_EQ(out.standard_error, "went wrong");
  EXPECT_EQ(out.standard_output, "");
  EXPECT_EQ(snow({"exec", "web", "--", "nonsense"}).exit_code, 127);
}

TEST_F(SnowTest, ExecsOwnErrorsAre125) {
  EXPECT_EQ(snow({"exec", "none", "--", "ls"}).exit_code, 125);
  EXPECT_EQ(snow({"exec", "web"}).exit_code, 125);
  EXPECT_EQ(snow({"exec", "web", "--env", "x", "--", "ls"}).exit_code, 125);
}

TEST_F(SnowTest, ExecTakesInputOnlyWithI) {
  EXPECT_EQ(shell("echo hello | $SNOW exec -i web -- cat").standard_output, "hello\n");
  EXPECT_EQ(shell("echo hello | $SNOW exec web -- cat").standard_output, "");
  // More than all buffers on the way, both ways at once.
  EXPECT_EQ(shell("head -c 20000000 /dev/zero | $SNOW exec -i web -- cat | wc -c").standard_output,
            "20000000\n");
}

TEST_F(SnowTest, ASignalReachesTheProgramInTheGuest) {
  const ProcessOutput out = shell(
      "$SNOW exec web -- wait & pid=$!; i=0; "
      // Sent until it ends: before exec has its stream, the signal ends the client itself.
      "sleep 1; kill -INT $pid 2>/dev/null; wait $pid; echo $?");
  EXPECT_TRUE(out.standard_output == "130\n") << out.standard_output << out.standard_error;
}

TEST_F(SnowTest, CopiesFilesBothWays) {
  EXPECT_EQ(shell("head -c 3000000 /dev/urandom > a && chmod 750 a && $SNOW cp a web:/a && "
                  "$SNOW cp web:/a b && cmp a b && echo same")
                .standard_output,
            "same\n");
  {
    const std::lock_guard lock(host_.mutex);
    EXPECT_EQ(host_.files["/a:mode"], "750");
  }
  EXPECT_EQ(shell("echo x | $SNOW cp - web:/x; $SNOW cp web:/x -").standard_output, "x\n");
  EXPECT_EQ(shell("$SNOW cp web:/none c; echo $?; ls c*").standard_output, "3\n");
  EXPECT_EQ(
      shell("echo old > d; $SNOW cp web:/torn d; echo $?; cat d; ls | grep snow$").standard_output,
      "12\nold\n");
  EXPECT_EQ(shell("$SNOW cp a web:/full; echo $?").standard_output, "9\n");
  EXPECT_EQ(shell("mkdir f; $SNOW cp f web:/f; echo $?").standard_output, "2\n");
  EXPECT_EQ(snow({"cp", "a", "b"}).exit_code, 2);
  EXPECT_EQ(snow({"cp", "web:relative", "b"}).exit_code, 2);
}

TEST_F(SnowTest, CopyOfAFolderSaysWhenTheGuestHasNoTar) {
  const ProcessOutput out = shell("mkdir f; echo 1 > f/1; $SNOW cp -r f web:/f");
  EXPECT_EQ(out.exit_code, 9);
  EXPECT_NE(out.standard_error.find("no `tar`"), std::string::npos) << out.standard_error;
}

TEST_F(SnowTest, LogsAndConsole) {
  EXPECT_EQ(snow({"logs", "web"}).standard_output, "Linux version\r\nlogin: ");
  const ProcessOutput out = shell("(echo good bye; sleep 1) | $SNOW console web");
  EXPECT_EQ(out.standard_output, "GOOD BYE\n");
  EXPECT_NE(out.standard_error.find("Ctrl-]"), std::string::npos);
  EXPECT_EQ(shell("printf 'a\\035' | $SNOW console web; echo $?").standard_output.back(), '\n');
}

TEST_F(SnowTest, EventsAreLines) {
  const ProcessOutput out = shell("$SNOW events | head -n 2");
  EXPECT_NE(out.standard_output.find("     8 2026-01-01T00:00:00Z vm_running vm=00c0ffee\n"),
            std::string::npos)
      << out.standard_output;
}

TEST_F(SnowTest, HostAndVersions) {
  EXPECT_NE(snow({"info"}).standard_output.find("1 of 8"), std::string::npos);
  EXPECT_NE(snow({"version"}).standard_output.find("snowd 0\n"), std::string::npos);
}

TEST_F(SnowTest, DoctorAnswersEveryQuestion) {
  const ProcessOutput out = snow({"doctor", "-o", "json"});
  const auto findings = nlohmann::json::parse(out.standard_output);
  EXPECT_GE(findings.size(), 10u);
  bool failed = false;
  for (const auto& finding : findings) {
    failed = failed || finding["verdict"] == "FAIL";
    EXPECT_FALSE(finding["text"].get<std::string>().empty());
  }
  EXPECT_EQ(out.exit_code, failed ? 13 : 0) << out.standard_output;
  EXPECT_EQ(findings.back()["verdict"], "PASS");  // the daemon
}

TEST_F(SnowTest, CompletionKnowsCommandsOptionsAndNames) {
  const std::string script = snow({"completion", "bash"}).standard_output;
  ASSERT_TRUE(write_file(folder_ + "/completion", script));
  const auto complete = [&](const std::string& words) {
    const auto ran = run_process(
        {"bash", "-c",
         fmt::format("snow() {{ {} --socket {}/api.sock \"$@\"; }}; source {}/completion; "
                     "COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _snow; "
                     "echo ${{COMPREPLY[@]}}",
                     SNOW_PROGRAM, folder_, folder_, words)});
    return ran->standard_output + ran->standard_error;
  };
  EXPECT_EQ(complete("snow im"), "image\n");
  EXPECT_EQ(complete("snow image im"), "import\n");
  EXPECT_EQ(complete("snow fork --par"), "--param\n");
  EXPECT_EQ(complete("snow fork w"), "web web-1 web-2\n");
  EXPECT_EQ(complete("snow snapshot rm ''"), "warm\n");
  host_.in_cluster = true;
  EXPECT_EQ(complete("snow host dr"), "drain\n");
  EXPECT_EQ(complete("snow host drain ''"), "a b\n");
  EXPECT_EQ(complete("snow cluster join --tok"), "--token --token-file\n");
  EXPECT_EQ(snow({"completion", "tcsh"}).exit_code, 2);
  EXPECT_NE(snow({"completion", "fish"}).standard_output.find("complete -c snow"),
            std::string::npos);
}

}  // namespace
}  // namespace snow::cli
