#include "cli/client.h"

#include <curl/curl.h>
#include <strings.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "api/frame.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

constexpr size_t kMaxErrorBytes = 64 * 1024;

// The error of the API's body, whatever it is.
Error error_of(long status, const std::string& body) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  if (json.is_object() && json.contains("code") && json["code"].is_string() &&
      json.contains("message") && json["message"].is_string()) {
    return Error{code_from_name(json["code"].get_ref<const std::string&>()),
                 json["message"].get<std::string>()};
  }
  return Error{Code::internal, fmt::format("snowd answered with status {} and no error", status)};
}

Error unreachable(const std::string& socket, int error) {
  if (error == EACCES || error == EPERM) {
    return Error{Code::denied,
                 fmt::format("socket '{}': permission denied; add yourself to the group 'snow' "
                             "(`usermod -aG snow $USER`, then log in again) or be root",
                             socket)};
  }
  return Error{Code::unavailable,
               fmt::format("snowd cannot be reached at '{}': {}; start it (`systemctl start "
                           "snowd`) or name its socket (--socket, SNOW_SOCKET)",
                           socket, strerror(error))};
}

class Transfer {
 public:
  Transfer(std::string socket, const char* method, const std::string& path)
      : socket_(std::move(socket)), curl_(curl_easy_init()) {
    set(CURLOPT_UNIX_SOCKET_PATH, socket_.c_str());
    set(CURLOPT_URL, ("http://snow/v1" + path).c_str());
    set(CURLOPT_CUSTOMREQUEST, method);
    set(CURLOPT_PATH_AS_IS, 1L);
    set(CURLOPT_PROXY, "");
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_WRITEFUNCTION, &on_write);
    set(CURLOPT_WRITEDATA, this);
    set(CURLOPT_HEADERFUNCTION, &on_header);
    set(CURLOPT_HEADERDATA, this);
  }
  ~Transfer() {
    curl_slist_free_all(headers_);
    curl_easy_cleanup(curl_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  void send_json(const nlohmann::json& body) {
    sent_ = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(sent_.size()));
    set(CURLOPT_POSTFIELDS, sent_.c_str());
    header("Content-Type: application/json");
  }
  void send_file(int fd, const std::string& name) {
    file_ = fd;
    file_name_ = name;
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_READFUNCTION, &on_read);
    set(CURLOPT_READDATA, this);
    header("Content-Type: application/octet-stream");
    header("Expect:");
  }
  void take(const std::function<Result<void>(std::string_view)>& take) { take_ = &take; }

  // Hosts whose part of the answer is missing, as the daemon names them.
  [[nodiscard]] const std::string& missing() const { return missing_; }

  // The whole body (empty if taken piece by piece).
  Result<std::string> perform() {
    set(CURLOPT_HTTPHEADER, headers_);
    const CURLcode result = curl_easy_perform(curl_);
    if (stopped_) return tl::unexpected<Error>(*stopped_);
    const long code = status();
    // A refused upload may end with a write error behind the answer: the answer tells more.
    if (code >= 400) return tl::unexpected<Error>(error_of(code, body_));
    if (result == CURLE_COULDNT_CONNECT) {
      long error = 0;
      curl_easy_getinfo(curl_, CURLINFO_OS_ERRNO, &error);
      return tl::unexpected<Error>(
          unreachable(socket_, error != 0 ? static_cast<int>(error) : ECONNREFUSED));
    }
    if (result != CURLE_OK) {
      return fail(Code::unavailable, "the connection to snowd broke off: {}; its log tells why",
                  curl_easy_strerror(result));
    }
    return std::move(body_);
  }

 private:
  template <class Value>
  void set(CURLoption option, Value value) {
    curl_easy_setopt(curl_, option, value);
  }
  void header(const char* line) { headers_ = curl_slist_append(headers_, line); }
  long status() {
    long code = 0;
    curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &code);
    return code;
  }

  static size_t on_header(char* data, size_t one, size_t count, void* self) {
    constexpr std::string_view kName = "Snow-Missing:";
    std::string_view line(data, one * count);
    if (line.size() > kName.size() && ::strncasecmp(line.data(), kName.data(), kName.size()) == 0) {
      line.remove_prefix(std::min(line.find_first_not_of(' ', kName.size()), line.size()));
      line.remove_suffix(line.size() - line.find_last_not_of("\r\n ") - 1);
      static_cast<Transfer*>(self)->missing_ = line;
    }
    return one * count;
  }
  static size_t on_write(char* data, size_t one, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    const std::string_view piece(data, one * count);
    if (transfer.take_ == nullptr || transfer.status() >= 400) {
      transfer.body_.append(piece);
    } else if (auto taken = (*transfer.take_)(piece); !taken) {
      transfer.stopped_ = taken.error();
      return 0;
    }
    return piece.size();
  }
  static size_t on_read(char* into, size_t one, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    for (;;) {
      const ssize_t got = ::read(transfer.file_, into, one * count);
      if (got < 0 && errno == EINTR) continue;
      if (got >= 0) return static_cast<size_t>(got);
      transfer.stopped_ =
          Error{Code::host_failed,
                fmt::format("file '{}': read failed: {}", transfer.file_name_, strerror(errno))};
      return CURL_READFUNC_ABORT;
    }
  }

  const std::string socket_;
  CURL* curl_;
  curl_slist* headers_ = nullptr;
  std::string sent_;
  std::string body_, missing_;
  int file_ = -1;
  std::string file_name_;
  const std::function<Result<void>(std::string_view)>* take_ = nullptr;
  std::optional<Error> stopped_;
};

Result<nlohmann::json> json_of(Result<std::string> body) {
  if (!body) return tl::unexpected<Error>(std::move(body).error());
  auto json = nlohmann::json::parse(*body, nullptr, false);
  if (json.is_discarded()) return fail(Code::corrupt, "snowd's answer is not JSON");
  return json;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.') {
      escaped += c;
    } else {
      escaped += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return escaped;
}

Result<nlohmann::json> Client::get(const std::string& path) const {
  Transfer transfer(socket_, "GET", path);
  auto body = transfer.perform();
  if (body && !transfer.missing().empty()) {
    note(fmt::format("did not answer in time, so not all is shown: {}", transfer.missing()));
  }
  return json_of(std::move(body));
}

Result<nlohmann::json> Client::post(const std::string& path, const nlohmann::json& body) const {
  Transfer transfer(socket_, "POST", path);
  transfer.send_json(body);
  return json_of(transfer.perform());
}

Result<nlohmann::json> Client::post(const std::string& path) const {
  return post(path, nlohmann::json::object());
}

Result<void> Client::remove(const std::string& path) const {
  SNOW_TRY(Transfer(socket_, "DELETE", path).perform());
  return {};
}

Result<void> Client::download(const std::string& path,
                              const std::function<Result<void>(std::string_view)>& take) const {
  Transfer transfer(socket_, "GET", path);
  transfer.take(take);
  SNOW_TRY(transfer.perform());
  return {};
}

Result<void> Client::upload(const std::string& path, int fd, const std::string& name) const {
  Transfer transfer(socket_, "PUT", path);
  transfer.send_file(fd, name);
  SNOW_TRY(transfer.perform());
  return {};
}

Result<Client::Stream> Client::upgrade(const std::string& path, const nlohmann::json& body) const {
  auto fd = connect_unix(socket_);
  if (!fd) {
    const int error = errno;
    if (fd.error().code != Code::unavailable) return tl::unexpected<Error>(fd.error());
    return tl::unexpected<Error>(unreachable(socket_, error));
  }
  const std::string text = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string request = fmt::format(
      "POST /v1{} HTTP/1.1\r\nHost: snow\r\nConnection: Upgrade\r\nUpgrade: {}\r\n"
      "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
      path, kStreamProtocol, text.size(), text);
  SNOW_TRY(write_all(fd->get(), std::as_bytes(std::span(request)), "request to snowd"));
  std::string answer;
  size_t end = std::string::npos;
  bool upgraded = false;
  // Until the headers are there; an error's body until the connection's end.
  while (answer.size() < kMaxErrorBytes) {
    char buffer[4096];
    const ssize_t got = ::recv(fd->get(), buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    answer.append(buffer, static_cast<size_t>(got));
    end = answer.find("\r\n\r\n");
    upgraded = end != std::string::npos && answer.starts_with("HTTP/1.1 101 ");
    if (upgraded) break;
  }
  if (upgraded) return Stream{*std::move(fd), answer.substr(end + 4)};
  if (end == std::string::npos) {
    return fail(Code::unavailable, "the connection to snowd broke off; its log tells why");
  }
  // Without the framing of a body: the object itself.
  const size_t open = answer.find('{', end);
  const size_t close = answer.rfind('}');
  const bool has_object = open != std::string::npos && close != std::string::npos && close > open;
  return tl::unexpected<Error>(
      error_of(std::strtol(answer.c_str() + 9, nullptr, 10),
               has_object ? answer.substr(open, close - open + 1) : std::string()));
}

}  // namespace snow::cli
