// The cluster's certificates, and how a new host gets one.
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "peer/join.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

TEST(Authority, ItsFilesAreSecret) {
  TestFolder folder;
  need(make_authority(folder / "a", "home"));
  need(make_host_certificate(folder / "a", kHostA));
  for (const char* name : {"ca.pem", "ca-key.pem", "host.pem", "host-key.pem", "issued.json"}) {
    struct stat status {};
    ASSERT_EQ(::stat((folder / "a/" + name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 0777, 0600u) << name;
  }
  EXPECT_TRUE(Credentials::load(identity_in(folder / "a", kHostA)));
}

TEST(Authority, IsMadeOnce) {
  TestFolder folder;
  need(make_authority(folder / "a", "home"));
  EXPECT_EQ(make_authority(folder / "a", "home").error().code, Code::exists);
  EXPECT_EQ(make_authority(folder / "b", "no/name").error().code, Code::invalid);
}

TEST(Authority, OnlyTheAuthoritySigns) {
  TestCluster cluster;
  const std::string member = cluster.add_host(kHostB);
  EXPECT_EQ(make_host_certificate(member, kHostA).error().code, Code::wrong_state);
}

TEST(Authority, AnIdIsGivenOutOnce) {
  TestCluster cluster;
  TestFolder folder;
  const std::string request = need(make_request(folder / "b", kHostB));
  EXPECT_TRUE(sign_request(cluster.folder(), kHostB, request));
  EXPECT_TRUE(sign_request(cluster.folder(), kHostB, request));
  const std::string other = need(make_request(folder / "c", kHostB));
  EXPECT_EQ(sign_request(cluster.folder(), kHostB, other).error().code, Code::exists);
}

TEST(Authority, RequestsAreChecked) {
  TestCluster cluster;
  EXPECT_EQ(sign_request(cluster.folder(), "../x", "").error().code, Code::invalid);
  EXPECT_EQ(sign_request(cluster.folder(), kHostB, "no PEM").error().code, Code::corrupt);
  const Key rsa(EVP_RSA_gen(2048));
  const std::string weak = need(make_request_pem(rsa.get(), kHostB));
  EXPECT_EQ(sign_request(cluster.folder(), kHostB, weak).error().code, Code::invalid);
}

TEST(CredentialsOf, FilesThatDoNotFit) {
  TestCluster cluster;
  const std::string b = cluster.add_host(kHostB);
  EXPECT_EQ(Credentials::load(identity_in(b, kHostA)).error().code, Code::invalid);
  auto other_key = identity_in(b, kHostB);
  other_key.key_file = cluster.folder() + "/ca-key.pem";
  EXPECT_EQ(Credentials::load(other_key).error().code, Code::invalid);
  TestCluster stranger;
  auto other_ca = identity_in(b, kHostB);
  other_ca.ca_file = stranger.folder() + "/ca.pem";
  EXPECT_EQ(Credentials::load(other_ca).error().code, Code::denied);
  auto missing = identity_in(b, kHostB);
  missing.cert_file = b + "/none.pem";
  EXPECT_EQ(Credentials::load(missing).error().code, Code::not_found);
  need(make_host_certificate(cluster.folder(), kHostA, -60));
  EXPECT_EQ(Credentials::load(identity_in(cluster.folder(), kHostA)).error().code, Code::denied);
}

struct JoinTest : testing::Test {
  JoinTest()
      : tokens(cluster.folder(), [this] { return now_ns; }),
        service(
            cluster.folder(), tokens,
            [this](const std::string& host, const nlohmann::json& about) -> Result<nlohmann::json> {
              if (refuse) return fail(Code::no_room, "cluster is full");
              std::this_thread::sleep_for(admit_takes);
              admitted.push_back(host + " " + about.at("name").get<std::string>());
              return nlohmann::json{{"name", "home"}};
            }) {
    need(make_host_certificate(cluster.folder(), kHostA));
    us = need(Credentials::load(identity_in(cluster.folder(), kHostA)));
    server = std::make_unique<Server>(us);
    service.add_to(*server);
    server->add("echo", echo);
    need(server->start({"127.0.0.1", 0}));
  }
  std::string token() { return need(tokens.make({server->address()}, 60)); }
  Result<Joined> join_as(const std::string& host, const std::string& text) {
    return join(folder / host, text, host, {{"name", "new"}}, kTestMs);
  }

  TestCluster cluster;
  TestFolder folder;
  int64_t now_ns = wall_clock_ns();
  bool refuse = false;
  std::chrono::milliseconds admit_takes{0};
  std::vector<std::string> admitted;
  TokenStore tokens;
  JoinService service;
  std::shared_ptr<const Credentials> us;
  std::unique_ptr<Server> server;
};

TEST_F(JoinTest, ANewHostBecomesAMember) {
  const Joined joined = need(join_as(kHostB, token()));
  EXPECT_EQ(joined.cluster.at("name"), "home");
  EXPECT_EQ(joined.authority_host, kHostA);
  EXPECT_EQ(joined.authority_address, server->address());
  EXPECT_EQ(admitted, std::vector<std::string>{kHostB + " new"});
  // Its certificate is good for the services of members.
  const auto member = need(Credentials::load(identity_in(folder / kHostB, kHostB)));
  Pool pool(member, [&](const std::string&) { return Result<Address>(server->address()); });
  EXPECT_EQ(need(pool.take(kHostA, "echo", kTestMs))->host(), kHostA);
}

TEST_F(JoinTest, ATokenIsGoodForOneHost) {
  const std::string text = token();
  EXPECT_TRUE(join_as(kHostB, text));
  const auto again = join_as("hcccccccccccc", text);
  EXPECT_EQ(again.error().code, Code::denied);
  EXPECT_NE(again.error().message.find("used already"), std::string::npos);
  EXPECT_EQ(admitted.size(), 1u);
  EXPECT_TRUE(join_as(kHostB, text));  // the same host, as after a lost answer
}

TEST_F(JoinTest, OfTwoAtOnceWithOneTokenOneIsAdmitted) {
  admit_takes = std::chrono::milliseconds(200);
  const std::string text = token();
  Result<Joined> other;
  std::thread at_once([&] { other = join_as("hcccccccccccc", text); });
  const Result<Joined> one = join_as(kHostB, text);
  at_once.join();
  EXPECT_NE(one.has_value(), other.has_value());
  EXPECT_EQ((one ? other : one).error().code, Code::denied);
  EXPECT_EQ(admitted.size(), 1u);
}

TEST_F(JoinTest, WrongAndOverTokens) {
  auto wrong = need(decode_token(token()));
  wrong.secret.fill(std::byte{1});
  EXPECT_EQ(join_as(kHostB, need(encode_token(wrong))).error().code, Code::denied);
  EXPECT_EQ(join_as(kHostB, "nonsense").error().code, Code::denied);
  const std::string text = token();
  now_ns += int64_t{61} * 1'000'000'000;
  const auto late = join_as(kHostB, text);
  EXPECT_EQ(late.error().code, Code::denied);
  EXPECT_NE(late.error().message.find("over"), std::string::npos) << late.error().message;
  EXPECT_TRUE(admitted.empty());
}

TEST_F(JoinTest, TheSecretIsOnlyToldToTheClusterOfTheToken) {
  auto other = need(decode_token(token()));
  other.ca_hash = need(authority_hash(TestCluster().folder()));
  const auto joined = join_as(kHostB, need(encode_token(other)));
  EXPECT_EQ(joined.error().code, Code::denied) << joined.error().message;
  EXPECT_TRUE(admitted.empty());
  // The good token was not used up by it.
  other.ca_hash = need(authority_hash(cluster.folder()));
  EXPECT_TRUE(join_as(kHostB, need(encode_token(other))));
}

TEST_F(JoinTest, ARefusalDoesNotUseTheTokenUp) {
  const std::string text = token();
  refuse = true;
  EXPECT_EQ(join_as(kHostB, text).error().code, Code::no_room);
  refuse = false;
  EXPECT_TRUE(join_as(kHostB, text));
}

TEST_F(JoinTest, AnotherHostsIdIsNotGivenAway) {
  EXPECT_EQ(join_as(kHostA, token()).error().code, Code::exists);
}

TEST_F(JoinTest, TheNextAddressIsTried) {
  auto several = need(decode_token(token()));
  several.addresses.insert(several.addresses.begin(), {"127.0.0.1", 1});
  EXPECT_TRUE(join_as(kHostB, need(encode_token(several))));
}

TEST_F(JoinTest, WithoutCertificateOnlyJoinIsOpen) {
  const auto stranger = need(Credentials::joining(need(authority_hash(cluster.folder()))));
  const auto made = Connection::connect(*stranger, server->address(), "", "echo", kTestMs);
  EXPECT_EQ(made.error().code, Code::denied) << made.error().message;
}

}  // namespace
}  // namespace snow::peer
