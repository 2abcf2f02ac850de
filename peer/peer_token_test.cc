#include "peer/test_cluster.h"
#include "peer/token.h"
#include "peer/token_store.h"

namespace snow::peer {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

Token some_token() {
  Token token;
  token.addresses = {{"10.0.0.7", 7171}, {"fd00::7", 7172}};
  for (size_t i = 0; i < token.ca_hash.size(); ++i) token.ca_hash[i] = static_cast<std::byte>(i);
  token.secret.fill(std::byte{0xa5});
  return token;
}

TEST(Base32, ComesBack) {
  for (size_t size = 0; size < 40; ++size) {
    const auto bytes = some_bytes(size);
    EXPECT_EQ(need(from_base32(to_base32(bytes))), bytes);
  }
  EXPECT_EQ(to_base32(std::as_bytes(std::span(std::string_view("foobar")))), "mzxw6ytboi");
  for (const char* wrong : {"a", "aaa", "aaaaaa", "a1", "ab", "mzxw6ytbo!"}) {
    EXPECT_FALSE(from_base32(wrong)) << wrong;
  }
}

TEST(Token, ComesBack) {
  const std::string text = need(encode_token(some_token()));
  EXPECT_EQ(need(decode_token(text)), some_token());
  EXPECT_EQ(need(decode_token("  " + text + "\n")), some_token());
  std::string shouted = text;
  for (char& c : shouted) c = static_cast<char>(std::toupper(c));
  EXPECT_EQ(need(decode_token(shouted)), some_token());
}

TEST(Token, ATypingErrorIsNoticed) {
  const std::string text = need(encode_token(some_token()));
  for (size_t i = 0; i < text.size(); ++i) {
    std::string wrong = text;
    wrong[i] = wrong[i] == 'a' ? 'b' : 'a';
    EXPECT_EQ(decode_token(wrong).error().code, Code::denied) << i;
    EXPECT_EQ(decode_token(text.substr(0, i)).error().code, Code::denied) << i;
  }
}

TEST(Token, NeedsAddresses) {
  Token token = some_token();
  token.addresses.clear();
  EXPECT_EQ(encode_token(token).error().code, Code::invalid);
  token.addresses.assign(kMaxTokenAddresses + 1, {"10.0.0.1", 1});
  EXPECT_EQ(encode_token(token).error().code, Code::invalid);
  token.addresses = {{"nonsense", 1}};
  EXPECT_EQ(encode_token(token).error().code, Code::invalid);
}

struct TokenStoreTest : testing::Test {
  Secret make(int64_t valid_seconds = 60) {
    return need(decode_token(need(store.make({{"10.0.0.7", 7171}}, valid_seconds)))).secret;
  }
  Result<void> spend(const Secret& secret, const std::string& key = "key",
                     const std::string& host = kHostA) {
    return store.spend(secret, host, key, [] { return Result<void>(); });
  }
  TestCluster cluster;
  int64_t now_ns = 1'000'000 * kSecond;
  TokenStore store{cluster.folder(), [this] { return now_ns; }};
};

TEST_F(TokenStoreTest, GoodOnce) {
  const Secret secret = make();
  EXPECT_TRUE(store.check(secret, "key"));
  EXPECT_TRUE(spend(secret));
  const auto again = spend(secret, "other key", kHostB);
  EXPECT_EQ(again.error().code, Code::denied);
  EXPECT_NE(again.error().message.find(kHostA), std::string::npos) << again.error().message;
  EXPECT_EQ(store.check(secret, "other key").error().code, Code::denied);
}

TEST_F(TokenStoreTest, TheSameKeyMayAskAgainForALostAnswer) {
  const Secret secret = make();
  EXPECT_TRUE(spend(secret));
  EXPECT_TRUE(spend(secret));
  now_ns += 61 * kSecond;
  EXPECT_EQ(spend(secret).error().code, Code::denied);
}

TEST_F(TokenStoreTest, OverAfterItsTime) {
  const Secret secret = make(60);
  now_ns += 59 * kSecond;
  EXPECT_TRUE(store.check(secret, "key"));
  now_ns += kSecond;
  EXPECT_EQ(spend(secret).error().code, Code::denied);
  EXPECT_TRUE(store.check_secret(secret));
}

TEST_F(TokenStoreTest, UnknownSecret) {
  make();
  EXPECT_EQ(spend(Secret{}).error().code, Code::denied);
  EXPECT_EQ(store.check_secret(Secret{}).error().code, Code::denied);
}

TEST_F(TokenStoreTest, AFailedAdmissionDoesNotUseItUp) {
  const Secret secret = make();
  const auto refused = store.spend(secret, kHostA, "key",
                                   []() -> Result<void> { return fail(Code::no_room, "full"); });
  EXPECT_EQ(refused.error().code, Code::no_room);
  EXPECT_TRUE(spend(secret, "other key", kHostB));
}

TEST_F(TokenStoreTest, UsedUpStaysSoAfterARestart) {
  const Secret secret = make();
  EXPECT_TRUE(spend(secret));
  TokenStore next(cluster.folder(), [this] { return now_ns; });
  EXPECT_EQ(next.check(secret, "other key").error().code, Code::denied);
  const std::string file = need(read_file(cluster.folder() + "/tokens.json"));
  EXPECT_EQ(file.find(to_base32(secret)), std::string::npos);
}

TEST_F(TokenStoreTest, ADamagedRecordIsNamed) {
  make();
  need(write_file(cluster.folder() + "/tokens.json", "[{\"used_by\": 3}]"));
  const auto made = store.make({{"10.0.0.7", 7171}}, 60);
  EXPECT_EQ(made.error().code, Code::corrupt);
}

}  // namespace
}  // namespace snow::peer
