#include "api/request.h"

#include <gtest/gtest.h>

namespace snow {
namespace {

TEST(Request, RunTakesEveryField) {
  const auto run = parse_run(R"({"image": "debian", "name": "web", "memory": 1073741824, "cpus": 2,
      "kernel": "/k", "initrd": "/i", "append": "quiet", "accelerator": "tcg", "network": "user",
      "machine": "q35", "environment": {"A": "1"}, "wait_for_agent": true})");
  ASSERT_TRUE(run) << run.error().message;
  EXPECT_EQ(run->image, "debian");
  EXPECT_EQ(run->name, "web");
  EXPECT_EQ(run->memory_bytes, 1u << 30);
  EXPECT_EQ(run->cpus, 2u);
  EXPECT_EQ(run->kernel, "/k");
  EXPECT_EQ(run->initrd, "/i");
  EXPECT_EQ(run->append, "quiet");
  EXPECT_EQ(run->accelerator, "tcg");
  EXPECT_EQ(run->network, "user");
  EXPECT_EQ(run->machine, "q35");
  EXPECT_EQ(run->environment.at("A"), "1");
  EXPECT_TRUE(run->wait_for_agent);
}

TEST(Request, RunOfASnapshotTakesACount) {
  EXPECT_EQ(parse_run(R"({"from": "warm", "count": 4})")->count, 4u);
  EXPECT_FALSE(parse_run(R"({"image": "tiny", "count": 4})"));
  EXPECT_FALSE(parse_run(R"({"from": "warm", "memory": 1})"));
  EXPECT_FALSE(parse_run(R"({"from": "warm", "image": "tiny"})"));
  EXPECT_FALSE(parse_run("{}"));
}

struct Refusal {
  const char* body;
  Code code;
  const char* says;  // a part of the message
};

TEST(Request, RefusalsNameTheFieldAndTheCause) {
  const Refusal refusals[] = {
      {"{", Code::usage, "not JSON"},
      {"[]", Code::usage, "must be a JSON object, not array"},
      {R"({"image": "a", "imaeg": 1})", Code::usage, "imaeg: unknown field"},
      {R"({"image": 1})", Code::usage, "image: must be a string, not number"},
      {R"({"image": "../../etc"})", Code::invalid, "image name '../../etc'"},
      {R"({"image": "a", "memory": "1G"})", Code::usage, "memory: must be a whole number"},
      {R"({"image": "a", "memory": -1})", Code::invalid, "memory -1"},
      {R"({"image": "a", "memory": 18446744073709551615})", Code::invalid, "memory"},
      {R"({"image": "a", "cpus": 1.5})", Code::usage, "cpus: must be a whole number, not 1.5"},
      {R"({"image": "a", "cpus": 256})", Code::invalid, "cpus 256: must be 0 to 255"},
      {R"({"image": "a", "kernel": "k"})", Code::invalid, "kernel 'k': must be an absolute path"},
      {R"({"image": "a", "kernel": "/k\u0000x"})", Code::invalid, "kernel: has a zero byte"},
      {R"({"image": "a", "accelerator": "xen"})", Code::invalid, "must be one of auto, kvm, tcg"},
      {R"({"image": "a", "environment": {"A": 1}})", Code::usage, "environment: must be a string"},
      {R"({"image": "a", "environment": {"A=B": "1"}})", Code::invalid, "environment"},
      {R"({"image": "a", "wait_for_agent": 1})", Code::usage, "must be true or false"},
  };
  for (const Refusal& refusal : refusals) {
    const auto run = parse_run(refusal.body);
    ASSERT_FALSE(run) << refusal.body;
    EXPECT_EQ(run.error().code, refusal.code) << refusal.body << ": " << run.error().message;
    EXPECT_NE(run.error().message.find(refusal.says), std::string::npos) << run.error().message;
  }
}

TEST(Request, BoundsOnSizeAndDepth) {
  EXPECT_EQ(parse_run(std::string(kMaxBodyBytes + 1, ' ')).error().code, Code::invalid);
  EXPECT_EQ(parse_run(std::string(100'000, '[')).error().code, Code::usage);
  EXPECT_EQ(parse_run(std::string(20, '[') + std::string(20, ']')).error().code, Code::usage);
}

TEST(Request, Import) {
  EXPECT_EQ(parse_import(R"({"name": "a", "file": "/f", "memory": 5, "cpus": 3})")->cpus, 3u);
  EXPECT_TRUE(parse_import(R"({"name": "a", "kernel": "/k", "initrd": "/i"})"));
  EXPECT_FALSE(parse_import(R"({"name": "a"})"));
  EXPECT_FALSE(parse_import(R"({"file": "/f"})"));
  EXPECT_FALSE(parse_import(R"({"name": "a", "file": "/f", "initrd": "/i"})"));
}

TEST(Request, Fork) {
  const auto fork = parse_fork(
      R"({"count": 8, "minimum": 4, "parameters": {"k": "v"}, "wait_for_ready": false})", "web");
  ASSERT_TRUE(fork);
  EXPECT_EQ(fork->vm, "web");
  EXPECT_EQ(fork->count, 8u);
  EXPECT_EQ(fork->minimum, 4u);
  EXPECT_EQ(fork->parameters.at("k"), "v");
  EXPECT_FALSE(fork->wait_for_ready);
  EXPECT_EQ(parse_fork("", "web")->count, 1u);
  EXPECT_EQ(parse_fork(R"({"ticket": "feed"})", "web")->count, 0u);
  EXPECT_EQ(parse_fork(R"({"ticket": "feed", "count": 2})", "web").error().code, Code::invalid);
  EXPECT_EQ(parse_fork(R"({"count": 0})", "web").error().code, Code::invalid);
  EXPECT_EQ(parse_fork(R"({"count": 2, "minimum": 3})", "web").error().code, Code::invalid);
}

TEST(Request, PlacesOfClones) {
  const auto fork = parse_fork(R"({"count": 8, "place": "spread", "hosts": ["a", "b"]})", "web");
  ASSERT_TRUE(fork) << fork.error().message;
  EXPECT_EQ(fork->placing.policy, "spread");
  EXPECT_EQ(fork->placing.hosts, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(parse_fork("", "web")->placing.policy, "");
  EXPECT_EQ(parse_reserve(R"({"count": 3, "place": "pack"})")->placing.policy, "pack");
  EXPECT_EQ(parse_reserve(R"({"count": 3, "hosts": ["a"]})")->placing.hosts.size(), 1u);
  for (const char* bad :
       {R"({"count": 1, "place": "far"})", R"({"count": 1, "hosts": ["../a"]})",
        R"({"count": 1, "hosts": [""]})", R"({"count": 1, "place": "local", "hosts": ["a"]})"}) {
    EXPECT_EQ(parse_reserve(bad).error().code, Code::invalid) << bad;
    EXPECT_EQ(parse_fork(bad, "web").error().code, Code::invalid) << bad;
  }
  EXPECT_EQ(parse_reserve(R"({"count": 1, "hosts": "a"})").error().code, Code::usage);
  // The hosts of a ticket were chosen when it was made.
  EXPECT_FALSE(parse_fork(R"({"ticket": "t1", "place": "spread"})", "web"));
  EXPECT_FALSE(parse_fork(R"({"ticket": "t1", "hosts": []})", "web"));
}

TEST(Request, Clusters) {
  const auto made = parse_cluster(R"({"name": "lab", "host_name": "a", "address": "10.0.0.1",
      "etcd": ["http://10.0.0.9:2379"], "plain": true})");
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->name, "lab");
  EXPECT_EQ(made->etcd.size(), 1u);
  EXPECT_TRUE(made->plain);
  EXPECT_EQ(parse_cluster("{}").error().code, Code::usage);
  EXPECT_FALSE(parse_cluster(R"({"address": "10.0.0.1", "etcd": ["10.0.0.9:2379"]})"));
  EXPECT_FALSE(parse_cluster(R"({"address": "10.0.0.1", "name": "a b"})"));
  EXPECT_FALSE(parse_cluster(R"({"address": 1})"));
  const auto joined = parse_join_cluster(R"({"token": "x", "address": "10.0.0.2:7000"})");
  ASSERT_TRUE(joined);
  EXPECT_EQ(joined->address, "10.0.0.2:7000");
  EXPECT_FALSE(parse_join_cluster(R"({"address": "10.0.0.2:7000"})"));
  EXPECT_FALSE(parse_join_cluster(R"({"token": "x"})"));
  EXPECT_EQ(parse_token("").value(), kTokenSeconds);
  EXPECT_EQ(parse_token(R"({"seconds": 60})").value(), 60u);
  EXPECT_FALSE(parse_token(R"({"seconds": 0})"));
  EXPECT_TRUE(parse_drain(R"({"drain": true})").value());
  EXPECT_FALSE(parse_drain(R"({"drain": false})").value());
  EXPECT_FALSE(parse_drain("{}"));
  EXPECT_EQ(parse_detach("").value(), -1);
  EXPECT_EQ(parse_detach(R"({"timeout_ms": 5000})").value(), 5000);
}

TEST(Request, TheSmallOnes) {
  EXPECT_EQ(parse_reserve(R"({"count": 3})")->count, 3u);
  EXPECT_FALSE(parse_reserve("{}"));
  EXPECT_EQ(parse_stop("").value(), kStopTimeoutMs);
  EXPECT_EQ(parse_stop(R"({"timeout_ms": 0})").value(), 0u);
  EXPECT_EQ(parse_join("{}").value(), -1);
  EXPECT_FALSE(parse_join(R"({"timeout_ms": -2})"));
  EXPECT_EQ(parse_snapshot(R"({"name": "warm"})").value(), "warm");
  EXPECT_FALSE(parse_snapshot(R"({"name": ""})"));
  EXPECT_TRUE(parse_nothing(" \n"));
  EXPECT_TRUE(parse_nothing("{}"));
  EXPECT_FALSE(parse_nothing(R"({"a": 1})"));
}

TEST(Request, Exec) {
  const auto exec = parse_exec(R"({"argv": ["ls", "-l"], "environment": {"A": ""},
      "directory": "/tmp", "user": "nobody", "terminal": true, "rows": 50, "columns": 132})");
  ASSERT_TRUE(exec) << exec.error().message;
  EXPECT_EQ(exec->argv, (std::vector<std::string>{"ls", "-l"}));
  EXPECT_EQ(exec->directory, "/tmp");
  EXPECT_EQ(exec->rows, 50u);
  EXPECT_FALSE(parse_exec(R"({"argv": []})"));
  EXPECT_FALSE(parse_exec(R"({"argv": [""]})"));
  EXPECT_FALSE(parse_exec(R"({"argv": "ls"})"));
  EXPECT_FALSE(parse_exec(R"({"argv": ["ls", 1]})"));
  EXPECT_FALSE(parse_exec(R"({"argv": ["ls"], "rows": 0})"));
}

TEST(Request, Control) {
  EXPECT_EQ(parse_control(R"({"resize": [24, 80]})")->columns, 80u);
  EXPECT_EQ(parse_control(R"({"signal": 15})")->signal, 15);
  for (const char* bad :
       {"", "1", R"({"resize": [0, 80]})", R"({"resize": [24]})", R"({"signal": 65})",
        R"({"signal": "TERM"})", R"({"what": 1})", R"({"resize": [1, 1], "signal": 1})"}) {
    EXPECT_FALSE(parse_control(bad)) << bad;
  }
}

}  // namespace
}  // namespace snow
