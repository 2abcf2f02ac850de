#include "cluster/etcd_messages.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "cluster/base64.h"
#include "cluster/json_text.h"

namespace snow {
namespace {

using nlohmann::json;

TEST(Base64Test, KnownAnswers) {  // RFC 4648, section 10
  for (const auto& [plain, text] : {std::pair{"", ""},
                                    {"f", "Zg=="},
                                    {"fo", "Zm8="},
                                    {"foo", "Zm9v"},
                                    {"foob", "Zm9vYg=="},
                                    {"fooba", "Zm9vYmE="},
                                    {"foobar", "Zm9vYmFy"}}) {
    EXPECT_EQ(base64_encode(plain), text);
    EXPECT_EQ(base64_decode(text).value(), plain);
  }
  for (const char* wrong :
       {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "=g==", "Zg==Zg==", "Z-==", "====", "Zm 9", "Zm9v\n"}) {
    EXPECT_EQ(base64_decode(wrong).error().code, Code::corrupt) << wrong;
  }
}

RC_GTEST_PROP(Base64Property, ComesBack, (const std::string& bytes)) {
  RC_ASSERT(base64_decode(base64_encode(bytes)).value() == bytes);
}

TEST(EtcdMessagesTest, ATransactionAsEtcdWantsIt) {
  Transaction transaction;
  transaction.compares = {{"a", 0}, {"b", 7}, {"c", Transaction::kPresent}};
  transaction.puts = {{"d", 1, 77}};
  transaction.removes = {"e"};
  const auto texts = check_transaction(transaction).value();
  const auto key = [](const char* name) { return base64_encode(std::string("/p/") + name); };
  const json expected = {
      {"compare",
       {{{"key", key("a")}, {"target", "MOD"}, {"result", "EQUAL"}, {"mod_revision", "0"}},
        {{"key", key("b")}, {"target", "MOD"}, {"result", "EQUAL"}, {"mod_revision", "7"}},
        {{"key", key("c")}, {"target", "MOD"}, {"result", "GREATER"}, {"mod_revision", "0"}}}},
      {"success",
       {{{"request_put", {{"key", key("d")}, {"value", "MQ=="}, {"lease", "77"}}}},
        {{"request_delete_range", {{"key", key("e")}}}}}}};
  EXPECT_EQ(json::parse(etcd_txn_request("/p/", transaction, texts)), expected);
}

TEST(EtcdMessagesTest, AnswersAreCheckedMemberByMember) {
  const auto range =
      parse_etcd_range(R"({"header":{"revision":"12"},"more":true,"count":"2","kvs":[)"
                       R"({"key":"YQ==","value":"MQ==","mod_revision":"9223372036854775807"}]})")
          .value();
  EXPECT_EQ(range.revision, 12u);
  EXPECT_TRUE(range.more);
  ASSERT_EQ(range.entries.size(), 1u);
  EXPECT_EQ(range.entries[0].revision, static_cast<uint64_t>(INT64_MAX));
  for (const char* wrong :
       {"", "{}", "[]", "null", R"({"header":1})", R"({"header":{"revision":"x"}})",
        R"({"header":{"revision":"-1"}})", R"({"header":{"revision":""}})",
        R"({"header":{"revision":"9223372036854775808"}})", R"({"header":{},"kvs":{}})",
        R"({"header":{},"kvs":[1]})", R"({"header":{},"more":1})",
        R"({"header":{},"kvs":[{"key":"YQ=="}]})", R"({"header":{},"kvs":[{"mod_revision":"1"}]})",
        R"({"header":{},"kvs":[{"key":1,"mod_revision":"1"}]})"}) {
    EXPECT_EQ(parse_etcd_range(wrong).error().code, Code::corrupt) << wrong;
  }
  EXPECT_TRUE(parse_etcd_txn(R"({"header":{},"succeeded":true})").value());
  EXPECT_FALSE(parse_etcd_txn(R"({"header":{}})").value());
  EXPECT_FALSE(parse_etcd_txn(R"({"succeeded":true})"));
  EXPECT_FALSE(parse_etcd_txn(R"({"header":{},"succeeded":"yes"})"));
  EXPECT_FALSE(parse_etcd_grant(R"({"ID":"1"})"));
  EXPECT_EQ(parse_etcd_keep_alive(R"({"result":{"ID":"7"}})").value().seconds, 0u);
  EXPECT_FALSE(parse_etcd_keep_alive(R"({"ID":"7"})"));
  EXPECT_EQ(parse_etcd_error(R"({"error":"a","message":"b","code":5})"), "b");
  EXPECT_EQ(parse_etcd_error(R"({"error":{"message":"c"}})"), "c");
  EXPECT_EQ(parse_etcd_error("Not Found"), "");
  EXPECT_EQ(parse_etcd_error(R"({"message":")" + std::string(5000, 'x') + "\"}").size(), 300u);
}

TEST(JsonTextTest, DepthIsCountedOutsideOfStrings) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth)));
  EXPECT_FALSE(parse_json(nested(kMaxJsonDepth + 1)));
  EXPECT_TRUE(parse_json('"' + nested(1000) + "\\\"" + nested(1000) + '"'));
  EXPECT_FALSE(parse_json("{\"a"));
  EXPECT_FALSE(parse_json("\"\xff\""));
}

}  // namespace
}  // namespace snow
