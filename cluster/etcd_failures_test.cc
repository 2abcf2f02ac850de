// An etcd that is not there, is no etcd, does not answer, dies, is full, holds alien values.
#include <gtest/gtest.h>

#include "base/process.h"
#include "cluster/base64.h"
#include "cluster/members.h"
#include "cluster/test_etcd.h"
#include "cluster/test_http.h"

namespace snow {
namespace {

using nlohmann::json;

EtcdOptions options_for(std::vector<std::string> endpoints) {
  EtcdOptions options;
  options.endpoints = std::move(endpoints);
  options.prefix = "/snow/test/";
  options.timeout_ms = 2000;
  return options;
}

std::unique_ptr<EtcdDirectory> directory_at(std::vector<std::string> endpoints,
                                            int timeout_ms = 2000) {
  EtcdOptions options = options_for(std::move(endpoints));
  options.timeout_ms = timeout_ms;
  return std::move(EtcdDirectory::make(options).value());
}

std::string nobody() { return "http://127.0.0.1:" + std::to_string(TestEtcd::free_port()); }

Transaction put(const std::string& key, const json& value) {
  Transaction transaction;
  transaction.puts.push_back({key, value, kNoLease});
  return transaction;
}

void expect_error(const Error& error, Code code, const std::string& part) {
  EXPECT_EQ(error.code, code) << error.message;
  EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
}

TEST(EtcdFailuresTest, WhereNobodyListensItSaysSo) {
  const std::string endpoint = nobody();
  const auto directory = directory_at({endpoint});
  for (const Error& error : {directory->get("a").error(), directory->list("").error(),
                             directory->commit(put("a", 1)).error(), directory->grant(5).error(),
                             directory->keep_alive(1).error(), directory->revoke(1).error()}) {
    expect_error(error, Code::unavailable, "no etcd answers (" + endpoint + ": ");
    expect_error(error, Code::unavailable, "start it, or mend the setting of its endpoints");
  }
}

TEST(EtcdFailuresTest, WrongSettingsAreRefusedAtOnce) {
  for (const char* wrong : {"", "127.0.0.1:2379", "unix:///x", "http://", "ftp://a",
                            "http://a:2379/", "http://a:2379/path", "http://a b"}) {
    EXPECT_EQ(EtcdDirectory::make(options_for({wrong})).error().code, Code::invalid) << wrong;
  }
  EXPECT_EQ(EtcdDirectory::make(options_for({})).error().code, Code::invalid);
  for (const char* wrong : {"", "/", "//", "snow/", "/snow", "/snow//", "/sn ow/"}) {
    EtcdOptions options = options_for({"http://127.0.0.1:2379"});
    options.prefix = wrong;
    EXPECT_EQ(EtcdDirectory::make(options).error().code, Code::invalid) << wrong;
  }
}

TEST(EtcdFailuresTest, AnotherServersAnswersAreNotTaken) {
  TestHttp no_etcd(
      {{404, "Not Found\n"},
       {200, "<html>"},
       {200, R"({"header":{},"kvs":[{"key":"!!"}]})"},
       {200, R"({"header":{"revision":"1"},"kvs":[{"key":"eA==","mod_revision":"1"}]})"},
       {200, R"({"header":{"revision":"1"},"kvs":[{"key":"eA==","mod_revision":"1"}]})"},
       {200, R"({"ID":"7","TTL":"1"})"},
       {200, R"({"result":{"ID":"8","TTL":"9"}})"},
       {302, ""}});
  const auto directory = directory_at({no_etcd.endpoint()});
  expect_error(directory->get("a").error(), Code::unavailable, "is not an etcd with the v3 API");
  expect_error(directory->get("a").error(), Code::corrupt, "etcd's answer to a read: not JSON");
  expect_error(directory->get("a").error(), Code::corrupt, "key: base64 of 2 characters");
  expect_error(directory->get("a").error(), Code::corrupt, "another key");
  expect_error(directory->list("a").error(), Code::corrupt, "outside");
  expect_error(directory->grant(5).error(), Code::host_failed, "a lease of 1 instead of 5");
  expect_error(directory->keep_alive(7).error(), Code::corrupt, "another lease");
  expect_error(directory->get("a").error(), Code::unavailable, "HTTP status 302");
}

TEST(EtcdFailuresTest, AChangeThatIsNotAnsweredIsSentOnceAndSaysThatItMayHaveHappened) {
  TestHttp silent({});
  TestHttp other({{200, R"({"header":{},"succeeded":true})"}});
  const auto directory = directory_at({silent.endpoint(), other.endpoint()}, 200);
  expect_error(directory->commit(put("a", 1)).error(), Code::timed_out, "may or may not");
  EXPECT_EQ(silent.requests(), 1);
  EXPECT_EQ(other.requests(), 0);
  // The next one goes to the other endpoint.
  EXPECT_TRUE(directory->commit(put("a", 1)).value());
}

TEST(EtcdFailuresTest, AReadThatIsNotAnsweredGoesToTheNextEndpoint) {
  TestHttp silent({});
  TestHttp other(
      {{200, R"({"header":{"revision":"1"}})"}, {200, R"({"header":{"revision":"1"}})"}});
  const auto directory = directory_at({silent.endpoint(), other.endpoint()}, 200);
  EXPECT_EQ(directory->get("a").value(), std::nullopt);
  EXPECT_EQ(directory->get("a").value(), std::nullopt);  // straight to the one that answers
  EXPECT_EQ(silent.requests(), 1);
  expect_error(directory->get("a").error(), Code::unavailable, silent.endpoint());
}

TEST(EtcdFailuresTest, WithoutLeaderAChangeIsKnownNotToHaveHappened) {
  const std::string no_leader = R"({"error":"etcdserver: no leader","code":14})";
  const std::string slow = R"({"error":"etcdserver: request timed out","code":14})";
  TestHttp server({{503, no_leader}, {503, slow}, {503, slow}});
  const auto directory = directory_at({server.endpoint()});
  expect_error(directory->commit(put("a", 1)).error(), Code::unavailable, "no leader");
  expect_error(directory->commit(put("a", 1)).error(), Code::timed_out, "request timed out");
  expect_error(directory->get("a").error(), Code::unavailable, "request timed out");
}

TEST(EtcdFailuresTest, AListWhosePastWasCompactedBeginsAnew) {
  const auto page = [](const std::string& key, bool more) {
    return fmt::format(
        R"({{"header":{{"revision":"9"}},"kvs":[{{"key":"{}","value":"MQ==","mod_revision":"1"}}],)"
        R"("more":{}}})",
        base64_encode("/snow/test/" + key), more);
  };
  const std::string compacted =
      R"({"error":"etcdserver: mvcc: required revision has been compacted","code":11})";
  TestHttp server(
      {{200, page("a", true)}, {400, compacted}, {200, page("a", true)}, {200, page("b", false)}});
  const auto all = directory_at({server.endpoint()})->list("").value();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].key, "a");
  EXPECT_EQ(all[1].key, "b");
}

TEST(EtcdFailuresTest, KilledAndStartedAgainItHasEverythingAndIsFoundByItself) {
  TestEtcd etcd;
  const auto directory = etcd.directory();
  EXPECT_TRUE(directory->commit(put("a", 1)).value());
  const LeaseId lease = directory->grant(60).value();
  etcd.kill();
  expect_error(directory->get("a").error(), Code::unavailable, "no etcd answers");
  expect_error(directory->commit(put("b", 1)).error(), Code::unavailable, "no etcd answers");
  ASSERT_TRUE(etcd.start());
  EXPECT_EQ(directory->get("a").value()->value, 1);
  EXPECT_EQ(directory->get("b").value(), std::nullopt);
  EXPECT_TRUE(directory->keep_alive(lease));
  EXPECT_TRUE(directory->commit(put("b", 1)).value());
  // With several endpoints one that lives is enough.
  const auto several = directory_at({nobody(), etcd.endpoint(), nobody()});
  EXPECT_TRUE(several->commit(put("c", 1)).value());
  EXPECT_EQ(several->list("").value().size(), 3u);
}

// What no daemon of ours wrote.
TEST(EtcdFailuresTest, AlienValuesAreNamed) {
  TestEtcd etcd;
  const auto directory = etcd.directory();
  const auto http = std::move(EtcdHttp::make(etcd.options()).value());
  const auto put_raw = [&](const std::string& key, const std::string& bytes) {
    const json request = {{"key", base64_encode(key)}, {"value", base64_encode(bytes)}};
    ASSERT_TRUE(http->post("/v3/kv/put", request.dump(), EtcdHttp::Repeat::allowed));
  };
  EXPECT_TRUE(directory->commit(put("vm/good", 1)).value());
  put_raw("/snow/test0/vm/a", "neighbour");
  put_raw("/snow/tes", "neighbour");
  EXPECT_EQ(directory->list("").value().size(), 1u);
  put_raw("/snow/test/vm/text", "not json");
  put_raw("/snow/test/vm/big", "\"" + std::string(100'000, 'x') + "\"");
  put_raw("/snow/test/vm/deep", std::string(10'000, '['));
  put_raw("/snow/test/vm/empty", "");
  put_raw("/snow/test/vm/\x01 \xff", "1");  // a key that we cannot have written: only listed
  for (const char* key : {"vm/text", "vm/big", "vm/deep", "vm/empty"}) {
    expect_error(directory->get(key).error(), Code::corrupt,
                 "directory key '/snow/test/" + std::string(key) + "'");
  }
  expect_error(directory->list("vm/").error(), Code::corrupt, "/snow/test/vm/");
  std::vector<Directory::Damaged> damaged;
  EXPECT_EQ(directory->list("vm/", &damaged).value().size(), 2u);
  EXPECT_EQ(damaged.size(), 4u);
  EXPECT_EQ(parse_vm({"vm/\x1b[2J\xff", json(1), 1}).error().message,
            "directory key 'vm/?[2J?': not an object");
  // What does not parse can still be taken away.
  Transaction remove;
  remove.removes = {"vm/text", "vm/big", "vm/deep", "vm/empty"};
  EXPECT_TRUE(directory->commit(remove).value());
  EXPECT_EQ(directory->list("vm/").value().size(), 2u);
}

TEST(EtcdFailuresTest, AFullOneSaysWhatToDo) {
  TestEtcd etcd({"--quota-backend-bytes=1000000"});
  const auto directory = etcd.directory();
  for (int i = 0; i < 100; ++i) {
    const auto done = directory->commit(put("a", std::string(60'000, 'x')));
    if (done) continue;
    expect_error(done.error(), Code::no_room, "--auto-compaction-retention");
    EXPECT_TRUE(directory->get("a").value());  // reads go on
    return;
  }
  FAIL() << "never full";
}

class TlsFiles {
 public:
  TlsFiles() {
    make_ca("ca");
    make_ca("other");
    make("server", "ca");
    make("client", "ca");
    make("stranger", "other");
  }
  [[nodiscard]] std::string operator/(const std::string& name) const { return folder_ / name; }
  [[nodiscard]] const std::string& path() const { return folder_.path(); }

 private:
  void openssl(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "openssl");
    const auto done = run_process(arguments);
    if (!done || done->exit_code != 0) {
      throw std::runtime_error(done ? done->standard_error : done.error().message);
    }
  }
  void make_ca(const std::string& name) {
    openssl({"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", folder_ / (name + ".key"), "-out", folder_ / (name + ".pem"), "-subj",
             "/CN=" + name, "-days", "2"});
  }
  void make(const std::string& name, const std::string& ca) {
    const std::string request = folder_ / (name + ".csr");
    if (!write_file(folder_ / "extensions", "subjectAltName=IP:127.0.0.1\n")) std::abort();
    openssl({"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", folder_ / (name + ".key"), "-out", request, "-subj", "/CN=" + name});
    openssl({"x509", "-req", "-in", request, "-CA", folder_ / (ca + ".pem"), "-CAkey",
             folder_ / (ca + ".key"), "-CAcreateserial", "-out", folder_ / (name + ".pem"), "-days",
             "2", "-extfile", folder_ / "extensions"});
  }
  TestFolder folder_;
};

TEST(EtcdFailuresTest, OverTlsBothSidesAreChecked) {
  const TlsFiles files;
  const TestEtcd etcd({}, {files.path()});
  const auto directory = etcd.directory();
  EXPECT_TRUE(directory->commit(put("a", 1)).value());
  const LeaseId lease = directory->grant(60).value();
  EXPECT_TRUE(directory->keep_alive(lease));
  const auto with = [&](const std::string& ca, const std::string& client) {
    EtcdOptions options = etcd.options();
    options.ca_file = files / (ca + ".pem");
    options.cert_file = client.empty() ? "" : files / (client + ".pem");
    options.key_file = client.empty() ? "" : files / (client + ".key");
    return EtcdDirectory::make(options).value()->get("a");
  };
  EXPECT_TRUE(with("ca", "client"));
  for (const auto& [ca, client] : {std::pair{"other", "client"}, {"ca", "stranger"}, {"ca", ""}}) {
    expect_error(with(ca, client).error(), Code::unavailable, etcd.endpoint());
  }
}

}  // namespace
}  // namespace snow
