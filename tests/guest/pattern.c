/* Memory that can be told apart: the proof that a clone has its parent's memory, and its own.
 *
 *   pattern serve MIB [churn]   fills MIB MiB from a random nonce and waits for questions; churn:
 *                               keeps rewriting every 16th page meanwhile
 *   pattern nonce               prints the nonce, which exists in this process's memory only
 *   pattern verify              checks every page: "OK pages P churned C" or "BAD page N ..."
 *   pattern touch COUNT         reads COUNT pages that no touch has read yet, far apart from each
 *                               other: "OK touched N p50_ns A p99_ns B", the times of the reads
 *   pattern own TAG             rewrites every third page for TAG, a number: what a clone does so
 *                               that its writes can be looked for elsewhere; verify knows of it
 *
 * Each page holds its number, its writer (TAG, 0 at first), its round, and words derived from these
 * and the nonce. Questions come over an abstract unix socket, one at a time; serve holds the pages'
 * lock while it answers. Exit: 0, 1 for BAD, 2 for misuse. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define CHURN_STRIDE 16
#define OWN_STRIDE 3
#define TOUCH_LIMIT 65536

static uint64_t nonce;
static uint64_t* memory;
static size_t pages;
static uint64_t churned;
static uint64_t owner; /* TAG of the last `own` */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

static void fill(size_t page, uint64_t writer, uint64_t round) {
  uint64_t* words = memory + page * WORDS;
  uint64_t seed = nonce ^ mix(page) ^ mix(writer << 32) ^ mix(~round);
  words[0] = page;
  words[1] = writer;
  words[2] = round;
  for (size_t i = 3; i < WORDS; i++) words[i] = seed + i * 0x9e3779b97f4a7c15ull;
}

/* NULL, or what is wrong with the page. */
static const char* check(size_t page) {
  const uint64_t* words = memory + page * WORDS;
  if (words[0] != page) return "another page's number";
  if (words[1] != (page % OWN_STRIDE == 0 ? owner : 0)) return "another writer";
  if (words[2] != 0 && page % CHURN_STRIDE != 0) return "a round that was not written";
  uint64_t seed = nonce ^ mix(page) ^ mix(words[1] << 32) ^ mix(~words[2]);
  for (size_t i = 3; i < WORDS; i++)
    if (words[i] != seed + i * 0x9e3779b97f4a7c15ull) return "torn or foreign content";
  return NULL;
}

static void* churn(void* unused) {
  (void)unused;
  for (uint64_t round = 1;; round++) {
    for (size_t page = 0; page < pages; page += CHURN_STRIDE) {
      pthread_mutex_lock(&lock);
      fill(page, memory[page * WORDS + 1], round);
      churned++;
      pthread_mutex_unlock(&lock);
      if (page / CHURN_STRIDE % 64 == 0) nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    nanosleep(&(struct timespec){0, 5000000}, NULL);
  }
  return NULL;
}

static int by_size(const void* a, const void* b) {
  uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
  return x < y ? -1 : x > y;
}

/* The golden section of the number of pages, made odd: steps of that length meet each page of a
 * power of two once before any twice, and stay far from where they were. */
static void touch(size_t count, char* text, size_t size) {
  static uint64_t took[TOUCH_LIMIT];
  static size_t touched;
  size_t stride = (size_t)((double)pages * 0.6180339887) | 1, done = 0;
  if (count > TOUCH_LIMIT) count = TOUCH_LIMIT;
  for (; done < count && touched < pages; done++, touched++) {
    const volatile uint64_t* words = memory + (touched * stride % pages) * WORDS;
    struct timespec start, end;
    uint64_t sum = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t i = 0; i < WORDS; i++) sum += words[i];
    clock_gettime(CLOCK_MONOTONIC, &end);
    took[done] = (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000u +
                 (uint64_t)(end.tv_nsec - start.tv_nsec) + (sum == 1);
  }
  if (done == 0) {
    snprintf(text, size, "BAD touch: all pages have been read\n");
    return;
  }
  qsort(took, done, sizeof *took, by_size);
  snprintf(text, size, "OK touched %zu p50_ns %llu p99_ns %llu\n", done,
           (unsigned long long)took[done / 2], (unsigned long long)took[done * 99 / 100]);
}

static void answer(const char* question, char* text, size_t size) {
  if (strcmp(question, "nonce") == 0) {
    snprintf(text, size, "%016llx\n", (unsigned long long)nonce);
  } else if (strcmp(question, "verify") == 0) {
    for (size_t page = 0; page < pages; page++) {
      const char* wrong = check(page);
      if (wrong == NULL) continue;
      snprintf(text, size, "BAD page %zu of %zu: %s\n", page, pages, wrong);
      return;
    }
    snprintf(text, size, "OK pages %zu churned %llu\n", pages, (unsigned long long)churned);
  } else if (strncmp(question, "touch ", 6) == 0) {
    touch(strtoul(question + 6, NULL, 10), text, size);
  } else if (strncmp(question, "own ", 4) == 0) {
    owner = strtoull(question + 4, NULL, 10);
    for (size_t page = 0; page < pages; page += OWN_STRIDE)
      fill(page, owner, memory[page * WORDS + 2]);
    snprintf(text, size, "OK owner %llu\n", (unsigned long long)owner);
  } else {
    snprintf(text, size, "BAD question\n");
  }
}

static int open_socket(int listening) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  static const char name[] = "snow-test-pattern";
  memcpy(address.sun_path + 1, name, sizeof name - 1);
  socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof name);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int result = listening ? bind(fd, (struct sockaddr*)&address, length)
                         : connect(fd, (struct sockaddr*)&address, length);
  if (fd < 0 || result != 0 || (listening && listen(fd, 16) != 0)) {
    perror(listening ? "pattern: bind" : "pattern: connect");
    exit(2);
  }
  return fd;
}

static int serve(size_t mib, int with_churn) {
  pages = mib * (1 << 20) / PAGE;
  memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || getrandom(&nonce, sizeof nonce, 0) != sizeof nonce) {
    perror("pattern: memory");
    return 2;
  }
  for (size_t page = 0; page < pages; page++) fill(page, 0, 0);
  int listener = open_socket(1);
  if (daemon(0, 0) != 0) return 2; /* the caller returns when questions can be asked */
  pthread_t thread;
  if (with_churn && pthread_create(&thread, NULL, churn, NULL) != 0) return 2;
  for (;;) {
    int peer = accept(listener, NULL, NULL);
    char question[64] = "", text[160];
    ssize_t got = peer < 0 ? -1 : read(peer, question, sizeof question - 1);
    if (got > 0) {
      pthread_mutex_lock(&lock);
      answer(question, text, sizeof text);
      pthread_mutex_unlock(&lock);
      if (write(peer, text, strlen(text)) < 0) perror("pattern: answer");
    }
    if (peer >= 0) close(peer);
  }
}

int main(int argc, char** argv) {
  if (argc >= 3 && strcmp(argv[1], "serve") == 0)
    return serve(strtoul(argv[2], NULL, 10), argc > 3 && strcmp(argv[3], "churn") == 0);
  if (argc < 2) {
    fprintf(stderr, "usage: pattern serve MIB [churn] | nonce | verify | touch COUNT | own TAG\n");
    return 2;
  }
  char question[64], text[160];
  if (argc > 2)
    snprintf(question, sizeof question, "%s %s", argv[1], argv[2]);
  else
    snprintf(question, sizeof question, "%s", argv[1]);
  int fd = open_socket(0);
  if (write(fd, question, strlen(question)) < 0) return 2;
  ssize_t got, length = 0;
  while ((got = read(fd, text + length, sizeof text - 1 - (size_t)length)) > 0) length += got;
  text[length] = 0;
  fputs(text, stdout);
  return length == 0 ? 2 : strncmp(text, "BAD", 3) == 0;
}
