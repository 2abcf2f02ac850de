// The server over a real unix socket, asked by libcurl, and by hand where connections are upgraded.
#include "api/server.h"

#include <curl/curl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "api/document.h"
#include "api/frame.h"
#include "api/request.h"
#include "api/test_host.h"
#include "base/fd.h"
#include "base/file.h"

namespace snow {
namespace {

struct Answer {
  CURLcode result = CURLE_OK;
  long status = 0;
  std::string type;
  std::string body;
  [[nodiscard]] std::string code() const {
    return nlohmann::json::parse(body).at("code").get<std::string>();
  }
  [[nodiscard]] std::string message() const {
    return nlohmann::json::parse(body).at("message").get<std::string>();
  }
};

size_t append(char* data, size_t one, size_t count, void* into) {
  static_cast<std::string*>(into)->append(data, one * count);
  return one * count;
}

struct Source {
  std::string_view left;
};
size_t give(char* into, size_t one, size_t count, void* from) {
  auto& source = *static_cast<Source*>(from);
  const size_t some = std::min(one * count, source.left.size());
  source.left.copy(into, some);
  source.left.remove_prefix(some);
  return some;
}

template <class Condition>
bool eventually(Condition condition) {
  for (int turn = 0; turn < 3000; ++turn) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/snow-server-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    socket_ = folder_ + "/api.sock";
    auto server = Server::start(host_, {socket_, "no-such-group", 64});
    ASSERT_TRUE(server) << server.error().message;
    server_ = *std::move(server);
  }
  void TearDown() override {
    host_.hold_inspect = false;
    server_.reset();
    EXPECT_EQ(host_.streams, 0);
    remove_all(folder_);
  }

  Answer ask(const std::string& method, const std::string& path, std::string_view body = {},
             bool upload = false) {
    Answer answer;
    CURL* curl = curl_easy_init();
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket_.c_str());
    curl_easy_setopt(curl, CURLOPT_URL, ("http://snow" + path).c_str());
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, append);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer.body);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 120L);
    Source source{body};
    if (upload) {
      curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);  // chunked: the size is not told
      curl_easy_setopt(curl, CURLOPT_READFUNCTION, give);
      curl_easy_setopt(curl, CURLOPT_READDATA, &source);
    } else if (method == "POST") {
      curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(body.size()));
      curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data() == nullptr ? "" : body.data());
    }
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method.c_str());
    answer.result = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
    const char* type = nullptr;
    curl_easy_getinfo(curl, CURLINFO_CONTENT_TYPE, &type);
    if (type != nullptr) answer.type = type;
    curl_easy_cleanup(curl);
    return answer;
  }

  // Sends a request by hand; `behind` goes with it in the same write. What follows the answer's
  // headers is left in `rest`.
  Fd upgrade(const std::string& path, std::string_view body, std::string_view behind,
             std::string& head, std::string& rest) {
    auto fd = connect_unix(socket_);
    EXPECT_TRUE(fd);
    const std::string request = fmt::format(
        "POST {} HTTP/1.1\r\nHost: snow\r\nConnection: Upgrade\r\nUpgrade: snow-stream\r\n"
        "Content-Length: {}\r\n\r\n{}{}",
        path, body.size(), body, behind);
    EXPECT_EQ(::send(fd->get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    std::string got;
    while (got.find("\r\n\r\n") == std::string::npos) {
      char buffer[4096];
      const ssize_t count = ::recv(fd->get(), buffer, sizeof buffer, 0);
      if (count <= 0) break;
      got.append(buffer, static_cast<size_t>(count));
    }
    const size_t end = got.find("\r\n\r\n");
    head = got.substr(0, end);
    rest = end == std::string::npos ? "" : got.substr(end + 4);
    return *std::move(fd);
  }

  // All frames until the server closes: channel 1, channel 2, last control.
  static std::array<std::string, 3> drain(int fd, std::string rest) {
    std::array<std::string, 3> all;
    FrameReader reader;
    reader.feed(rest);
    for (;;) {
      auto frame = reader.next();
      if (!frame) return all;
      if (*frame) {
        auto& into = all[static_cast<size_t>((*frame)->channel) - 1];
        if ((*frame)->channel == Channel::control) into.clear();
        into += (*frame)->bytes;
        continue;
      }
      char buffer[65536];
      const ssize_t count = ::recv(fd, buffer, sizeof buffer, 0);
      if (count <= 0) return all;
      reader.feed(std::string_view(buffer, static_cast<size_t>(count)));
    }
  }

  std::string folder_, socket_;
  TestHost host_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, PlainRequests) {
  Answer answer = ask("GET", "/v1/info");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.type, "application/json");
  EXPECT_EQ(nlohmann::json::parse(answer.body)["accelerator"]["name"], "tcg");
  answer = ask("GET", "/v1/vms?all=true");
  EXPECT_EQ(nlohmann::json::parse(answer.body).size(), 3u);
  answer = ask("POST", "/v1/vms", R"({"image": "tiny", "memory": 536870912})");
  EXPECT_EQ(answer.status, 201) << answer.body;
  EXPECT_EQ(host_.last_run.memory_bytes, 512u << 20);
  answer = ask("DELETE", "/v1/vms/web?force=1");
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(answer.body, "");
  EXPECT_EQ(ask("POST", "/v1/vms/web/pause").status, 200);
  EXPECT_EQ(ask("GET", "/v1/openapi.yaml").body, api_document());
}

TEST_F(ServerTest, ClustersAndHosts) {
  EXPECT_EQ(ask("GET", "/v1/hosts").status, 409);
  Answer answer = ask("POST", "/v1/cluster", R"({"address": "10.0.0.1", "name": "lab"})");
  EXPECT_EQ(answer.status, 201) << answer.body;
  EXPECT_EQ(host_.last_cluster.name, "lab");
  EXPECT_EQ(ask("POST", "/v1/cluster/join", R"({"token": "x", "address": "1.2.3.4"})").status, 403);
  answer = ask("POST", "/v1/cluster/tokens", R"({"seconds": 60})");
  EXPECT_EQ(answer.status, 201);
  EXPECT_EQ(nlohmann::json::parse(answer.body)["token"], "secret");
  EXPECT_EQ(host_.last_token_seconds, 60u);
  host_.in_cluster = true;
  EXPECT_EQ(nlohmann::json::parse(ask("GET", "/v1/hosts").body).size(), 2u);
  EXPECT_TRUE(nlohmann::json::parse(ask("GET", "/v1/hosts/a").body).contains("exchange"));
  EXPECT_EQ(ask("GET", "/v1/hosts/c").status, 404);
  EXPECT_EQ(ask("POST", "/v1/hosts/b/drain", "{}").status, 400);
  answer = ask("POST", "/v1/hosts/b/drain", R"({"drain": true})");
  EXPECT_EQ(nlohmann::json::parse(answer.body)["state"], "drained");
  EXPECT_EQ(ask("DELETE", "/v1/hosts/b").status, 409);
  EXPECT_EQ(ask("DELETE", "/v1/hosts/b?force=true").status, 204);
  EXPECT_EQ(ask("POST", "/v1/vms/web/detach", R"({"timeout_ms": 50})").status, 200);
  EXPECT_EQ(host_.last_detach_ms, 50);
}

TEST_F(ServerTest, ErrorsHaveOneShape) {
  struct Case {
    const char *method, *path, *body;
    int status;
    const char *code, *says;
  };
  for (const Case& one : {
           Case{"GET", "/v1/vms/x", "", 404, "not_found", "VM 'x': no such VM"},
           Case{"GET", "/v1/nothing", "", 404, "not_found", "no such path"},
           Case{"GET", "/", "", 404, "not_found", "no such path"},
           Case{"GET", "/v1/vms/", "", 404, "not_found", "no such path"},
           Case{"PATCH", "/v1/vms", "", 400, "usage", "GET, POST"},
           Case{"GET", "/v1/vms?al=1", "", 400, "usage", "'al'"},
           Case{"GET", "/v1/vms?all=x", "", 400, "invalid", "all 'x'"},
           Case{"GET", "/v1/images/..%2F..%2Fetc", "", 404, "not_found", "no such path"},
           Case{"GET", "/v1/images/%2e%2e", "", 400, "invalid", "must begin with"},
           Case{"POST", "/v1/vms", "{nonsense", 400, "usage", "not JSON"},
           Case{"POST", "/v1/vms", R"({"imaeg": "x"})", 400, "usage", "imaeg: unknown field"},
           Case{"POST", "/v1/vms/web/tickets", R"({"count": 5})", 507, "no_room", "limit is 4"},
           Case{"DELETE", "/v1/vms/web", "", 409, "wrong_state", "snow rm -f"},
           Case{"POST", "/v1/tickets/old/join", "", 410, "spent", "joined already"},
           Case{"POST", "/v1/vms/web/exec", R"({"argv": ["ls"]})", 400, "usage", "Upgrade"},
           Case{"GET", "/v1/vms/throws", "", 500, "internal", "thrown by a test"},
           Case{"GET", "/v1/vms/web/file", "", 400, "usage", "'path': missing"},
           Case{"GET", "/v1/vms/web/file?path=etc", "", 400, "invalid", "absolute"},
           Case{"GET", "/v1/vms/web/file?path=/none", "", 404, "not_found", "no such file"},
       }) {
    const Answer answer = ask(one.method, one.path, one.body);
    ASSERT_EQ(answer.result, CURLE_OK) << one.method << " " << one.path;
    EXPECT_EQ(answer.status, one.status) << one.method << " " << one.path << " " << answer.body;
    EXPECT_EQ(answer.code(), one.code) << answer.body;
    EXPECT_NE(answer.message().find(one.says), std::string::npos) << answer.body;
  }
}

TEST_F(ServerTest, BodiesAreBounded) {
  const std::string too_long(kMaxBodyBytes + 1000, ' ');
  Answer answer = ask("POST", "/v1/vms", too_long);
  EXPECT_EQ(answer.status, 400) << answer.result;
  EXPECT_NE(answer.message().find("longer than"), std::string::npos);
  EXPECT_EQ(ask("POST", "/v1/vms", too_long, true).status, 400);  // chunked
  EXPECT_EQ(ask("GET", "/v1/info").status, 200);
}

TEST_F(ServerTest, HeadersAreBounded) {
  auto fd = connect_unix(socket_);
  ASSERT_TRUE(fd);
  std::string head = "GET /v1/info HTTP/1.1\r\nHost: snow\r\nX: ";
  head.append(1 << 20, 'x');
  (void)::send(fd->get(), head.data(), head.size(), MSG_NOSIGNAL);
  std::string got;
  char buffer[4096];
  for (ssize_t count = 0; (count = ::recv(fd->get(), buffer, sizeof buffer, 0)) > 0;) {
    got.append(buffer, static_cast<size_t>(count));
  }
  EXPECT_EQ(got.find(" 200 "), std::string::npos) << got;
  EXPECT_EQ(ask("GET", "/v1/info").status, 200);
}

TEST_F(ServerTest, FilesAreStreamedBothWays) {
  std::string content;
  for (int i = 0; content.size() < (5u << 20); ++i) content += fmt::format("{} ", i);
  EXPECT_EQ(ask("PUT", "/v1/vms/web/file?path=/big&mode=755", content, true).status, 204);
  EXPECT_EQ(host_.files["/big:mode"], "755");
  Answer answer = ask("GET", "/v1/vms/web/file?path=/big");
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.body == content);
  EXPECT_EQ(ask("PUT", "/v1/vms/web/file?path=/empty", "", true).status, 204);
  EXPECT_EQ(host_.files.at("/empty"), "");
  EXPECT_EQ(ask("GET", "/v1/vms/web/file?path=/empty").status, 200);
  answer = ask("PUT", "/v1/vms/web/file?path=/full", content, true);
  EXPECT_EQ(answer.status, 502) << answer.body;
  EXPECT_EQ(ask("PUT", "/v1/vms/none/file?path=/x", "x", true).status, 404);
  EXPECT_EQ(ask("PUT", "/v1/vms/web/file?path=/x&mode=8", "x", true).status, 400);
}

TEST_F(ServerTest, AFileThatEndsMidwayIsNoWholeFile) {
  const Answer answer = ask("GET", "/v1/vms/web/file?path=/torn");
  EXPECT_EQ(answer.body, "half of it");
  EXPECT_NE(answer.result, CURLE_OK);
}

TEST_F(ServerTest, FilesOfTheCallerAreOpenedByTheServer) {
  const std::string file = folder_ + "/disk.raw";
  ASSERT_TRUE(write_file(file, "a disk"));
  Answer answer =
      ask("POST", "/v1/images", fmt::format(R"({{"name": "new", "file": "{}"}})", file));
  EXPECT_EQ(answer.status, 201) << answer.body;
  EXPECT_EQ(host_.imported, "a disk");
  EXPECT_EQ(host_.imported_path.find("/proc/"), 0u);
  // A message names the file as the caller does.
  answer = ask("POST", "/v1/images", fmt::format(R"({{"name": "tiny", "file": "{}"}})", file));
  EXPECT_EQ(answer.status, 409);
  EXPECT_NE(answer.message().find(file), std::string::npos) << answer.body;
  EXPECT_EQ(ask("POST", "/v1/images", R"({"name": "new", "file": "/no/such"})").status, 404);
}

TEST_F(ServerTest, EventsAreLines) {
  // Three events (8 and 9 after the newest, 7), then silence: read two lines and go.
  auto fd = connect_unix(socket_);
  ASSERT_TRUE(fd);
  const std::string request = "GET /v1/events HTTP/1.1\r\nHost: snow\r\n\r\n";
  ASSERT_EQ(::send(fd->get(), request.data(), request.size(), 0),
            static_cast<ssize_t>(request.size()));
  std::string got;
  char buffer[4096];
  while (got.find("\"seq\":9") == std::string::npos) {
    const ssize_t count = ::recv(fd->get(), buffer, sizeof buffer, 0);
    ASSERT_GT(count, 0) << got;
    got.append(buffer, static_cast<size_t>(count));
  }
  EXPECT_NE(got.find("\"seq\":8"), std::string::npos) << got;
  EXPECT_NE(got.find("application/x-ndjson"), std::string::npos) << got;
}

TEST_F(ServerTest, ExecPassesStreamsAndTheExitCode) {
  std::string head, rest;
  Fd fd = upgrade("/v1/vms/web/exec", R"({"argv": ["fail", "went wrong", "3"]})", "", head, rest);
  EXPECT_EQ(head.find("HTTP/1.1 101"), 0u) << head;
  EXPECT_NE(head.find("Upgrade: snow-stream"), std::string::npos) << head;
  EXPECT_EQ(drain(fd.get(), rest), (std::array<std::string, 3>{"", "went wrong", R"({"exit":3})"}));
}

TEST_F(ServerTest, ExecTakesInputSentWithTheRequest) {
  std::string head, rest;
  const std::string input = encode_frame(Channel::input, "abc") + encode_frame(Channel::input, "");
  Fd fd = upgrade("/v1/vms/web/exec", R"({"argv": ["cat"]})", input, head, rest);
  EXPECT_EQ(drain(fd.get(), rest), (std::array<std::string, 3>{"abc", "", R"({"exit":0})"}));
}

TEST_F(ServerTest, ExecCutsLongOutputIntoFrames) {
  std::string head, rest;
  Fd fd = upgrade("/v1/vms/web/exec", R"({"argv": ["flood", "1000000"]})", "", head, rest);
  const auto all = drain(fd.get(), rest);
  EXPECT_EQ(all[0].size(), 1'000'000u);
  EXPECT_EQ(all[2], R"({"exit":0})");
}

TEST_F(ServerTest, ExecPassesResizesAndSignals) {
  std::string head, rest;
  Fd sized = upgrade("/v1/vms/web/exec", R"({"argv": ["size"], "terminal": true})", "", head, rest);
  ASSERT_TRUE(send_frame(sized.get(), Channel::control, R"({"resize": [50, 132]})"));
  EXPECT_EQ(drain(sized.get(), rest)[0], "50 132\n");
  Fd waiting = upgrade("/v1/vms/web/exec", R"({"argv": ["wait"]})", "", head, rest);
  ASSERT_TRUE(send_frame(waiting.get(), Channel::control, R"({"signal": 15})"));
  EXPECT_EQ(drain(waiting.get(), rest)[2], R"({"exit":143})");
}

TEST_F(ServerTest, AClientThatGoesEndsItsProgram) {
  std::string head, rest;
  {
    const Fd fd = upgrade("/v1/vms/web/exec", R"({"argv": ["wait"]})", "", head, rest);
    EXPECT_EQ(host_.streams, 1);
  }
  EXPECT_TRUE(eventually([&] { return host_.streams == 0; }));
  EXPECT_EQ(host_.last_signal, 9);
}

TEST_F(ServerTest, GarbageOnAStreamClosesIt) {
  std::string head, rest;
  const Fd fd = upgrade("/v1/vms/web/exec", R"({"argv": ["wait"]})", "garbage!", head, rest);
  EXPECT_EQ(drain(fd.get(), rest)[2], "");
  EXPECT_TRUE(eventually([&] { return host_.streams == 0; }));
}

TEST_F(ServerTest, ExecErrorsBeforeTheStreamArePlain) {
  std::string head, rest;
  const Fd fd = upgrade("/v1/vms/none/exec", R"({"argv": ["ls"]})", "", head, rest);
  EXPECT_EQ(head.find("HTTP/1.1 404"), 0u) << head;
}

TEST_F(ServerTest, ConsoleBothWays) {
  std::string head, rest;
  Fd fd = upgrade("/v1/vms/web/console", "", encode_frame(Channel::input, "good bye"), head, rest);
  EXPECT_EQ(head.find("HTTP/1.1 101"), 0u) << head;
  const auto all = drain(fd.get(), rest);
  EXPECT_EQ(all[0], "GOOD BYE");
  EXPECT_EQ(all[2], R"({"exit":0})");
}

TEST_F(ServerTest, ManyAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; turn < 8; ++turn) good += ask("GET", "/v1/vms").status == 200;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 128);
}

TEST_F(ServerTest, TheSocketIsNotForEverybody) {
  struct stat status {};
  ASSERT_EQ(::stat(socket_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);  // the group does not exist
  EXPECT_EQ(Server::start(host_, {socket_, "", 64}).error().code, Code::exists);
}

TEST_F(ServerTest, StopEndsStreamsAndNamesWhatStillRuns) {
  std::string head, rest;
  const Fd exec = upgrade("/v1/vms/web/exec", R"({"argv": ["wait"]})", "", head, rest);
  EXPECT_TRUE(server_->stop(60'000));
  EXPECT_EQ(host_.streams, 0);
  EXPECT_FALSE(connect_unix(socket_));
}

TEST_F(ServerTest, StopGivesUpOnARequestThatTakesTooLong) {
  host_.hold_inspect = true;
  Answer answer;
  std::thread asking([&] { answer = ask("GET", "/v1/vms/web"); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const bool stopped = server_->stop(50);
  host_.hold_inspect = false;
  asking.join();
  // Whether the request had begun is the scheduler's matter; stop must not have waited for it.
  if (stopped) {
    EXPECT_NE(answer.result, CURLE_OK);
  } else {
    EXPECT_EQ(answer.status, 200);
    EXPECT_TRUE(server_->stop(60'000));
  }
}

}  // namespace
}  // namespace snow
