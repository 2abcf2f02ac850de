// The processes of one hierarchical clone. The one that called snow_clone is the first; the others
// are its children and hand their result to it through a pipe. It sends all of them, as records in
// the order of the vCPUs, as the clone's one payload:
//
//     u32 how (snow_how) | u32 status (two's complement) | u32 size | size bytes      (all LE)
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace snow::guest {

struct Record {
  unsigned how = 0;
  int status = 0;
  std::string payload;
};
std::string encode_records(const std::vector<Record>& records);
std::optional<std::vector<Record>> decode_records(std::string_view bytes, size_t count);
size_t record_limit(unsigned vcpus);  // of one record's payload

// In a clone: forks. Result: which vCPU's process this is (0: the first), or -1 with errno.
int spread(unsigned vcpus);
unsigned spread_over();  // vcpus of spread() in this process or its first; 0: not hierarchical
bool is_first();

// Of another than the first: hands the result over and ends the process.
[[noreturn]] void end_follower(int status, std::string_view payload);
// Of the first: waits for the others. Own record first.
std::vector<Record> gather(int status, std::string_view payload);

}  // namespace snow::guest
