#include "lazyfs/request_table.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/fd.h"
#include "lazyfs/lazyfs.h"

namespace snow {
namespace {

Fd new_table() {
  Fd fd(memfd_create("table", MFD_CLOEXEC));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(lazyfs_table_bytes())), 0);
  return fd;
}

TEST(RequestTable, WhatIsInASlotIsSeenByTheNextOne) {
  const Fd fd = new_table();
  fuse_in_header header{};
  header.len = sizeof header + 4;
  header.unique = 42;
  {
    auto first = RequestTable::map(fd.get());
    ASSERT_TRUE(first);
    EXPECT_FALSE(first->noted(3));
    std::memcpy(first->slot(3).data(), &header, sizeof header);
  }
  auto second = RequestTable::map(fd.get());
  ASSERT_TRUE(second);
  ASSERT_TRUE(second->noted(3));
  EXPECT_EQ(second->noted(3)->unique, 42U);
  second->clear(3);
  EXPECT_FALSE(second->noted(3));
  header.len = RequestTable::kSlotBytes + 1;
  std::memcpy(second->slot(3).data(), &header, sizeof header);
  EXPECT_FALSE(second->noted(3)) << "makes no sense";
}

TEST(RequestTable, UnboundFilesAreListed) {
  const Fd fd = new_table();
  auto table = RequestTable::map(fd.get());
  ASSERT_TRUE(table);
  EXPECT_FALSE(table->maybe_unbound(5));
  table->note_unbound(5);
  table->note_unbound(6);
  table->note_unbound(5);
  table->forget_unbound(5);
  EXPECT_FALSE(table->maybe_unbound(5));
  EXPECT_TRUE(RequestTable::map(fd.get())->maybe_unbound(6));
  table->set_unbound({9});
  EXPECT_FALSE(table->maybe_unbound(6));
  EXPECT_TRUE(table->maybe_unbound(9));
}

TEST(RequestTable, TooManyUnboundFilesMeansAll) {
  const Fd fd = new_table();
  auto table = RequestTable::map(fd.get());
  ASSERT_TRUE(table);
  for (uint64_t i = 0; i <= RequestTable::kUnboundFiles; ++i) table->note_unbound(10 + i);
  EXPECT_TRUE(table->maybe_unbound(1'000'000));
  table->set_unbound({});
  EXPECT_FALSE(table->maybe_unbound(1'000'000));
}

TEST(RequestTable, AnotherLayoutStartsEmpty) {
  const Fd fd = new_table();
  RequestTable::map(fd.get())->note_unbound(6);
  const uint64_t other = 1;
  ASSERT_EQ(pwrite(fd.get(), &other, sizeof other, 0), 8);
  EXPECT_FALSE(RequestTable::map(fd.get())->maybe_unbound(6));
}

}  // namespace
}  // namespace snow
