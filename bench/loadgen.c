/* loadgen: the one client of the bench, so that every store is measured by the same thing.
 *
 * It replays a plan of requests prepared ahead (heads signed by bench/signing.py) over keep-alive HTTP/1.1
 * connections, one epoll loop, one thread, and checks each answer: status, length, and every byte (against a
 * known pattern) or every listed key (against a hash). What fails a check is an error, never a success, and its
 * latency is not recorded. The run is bounded in requests, in time, in time per request and in errors.
 * It prints one JSON object, its own CPU included. It needs libc alone, and no allocation grows with the run.
 *
 * It deliberately does not do TLS, pipelining, redirects or retries: a closed connection with a request in
 * flight is an error even where a patient client would ask again.
 *
 * Plan file, little endian: 8 bytes "TLPLAN01", u64 number of entries, then per entry `struct entry` followed by
 * the request head padded to 8 bytes. Bodies are slices of the pattern file, which repeats for ever.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum check { CHECK_STATUS, CHECK_PATTERN, CHECK_KEYS, CHECK_HEAD, CHECK_PREFIXES };

struct entry {
    uint32_t head_len, status;    /* the only status that can be a success */
    uint32_t refused, check;      /* a status counted apart as "refused" (0: none); enum check */
    uint64_t body_at, body_len;   /* request body: slice of the endless pattern */
    uint64_t expect_at, expect_len; /* response body: slice of the pattern, or its length alone for HEAD */
    uint64_t expect_hash;         /* FNV-1a of every listed <Key> or common prefix, each followed by a newline */
    uint64_t expect_count;        /* how many of them there are */
};

enum failure { BAD_STATUS, BAD_BODY, BAD_HTTP, NOT_CONNECTED, CLOSED, TIMED_OUT, FAILURES };
static const char *const FAILURE_NAMES[FAILURES] = {"status", "body", "http", "connect", "closed", "timeout"};

enum phase { IDLE, CONNECTING, BUSY };
enum chunk { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, CHUNK_TRAILER };

#define HEAD_MAX 16384
#define PEEK_MAX 160
#define BODY_MAX (64u << 20) /* a listing larger than this is an error */
#define READ_BYTES (256u << 10)
#define SAMPLES 3

struct connection {
    int fd;
    enum phase phase;
    bool want_write;
    const struct entry *entry;
    uint64_t started_ns, deadline_ns;
    uint64_t sent; /* bytes of head and body together */
    /* response */
    char head[HEAD_MAX + 1];
    size_t head_len;
    bool in_body, chunked, close_after, mismatch;
    int status;
    int64_t length; /* -1: not stated */
    uint64_t got;   /* body bytes so far */
    uint64_t first_ns; /* when the first of them arrived */
    enum chunk chunk;
    uint64_t chunk_left;
    char line[64];
    size_t line_len;
    char *body; /* kept for listings only */
    size_t body_cap;
    char peek[PEEK_MAX];
    size_t peek_len;
};

static const unsigned char *pattern;
static uint64_t period;
static const struct entry **entries;
static uint64_t entry_count;
static int poll_fd, timer_fd;
static struct sockaddr_in server;
static uint64_t timeout_ns;

static uint64_t ok_count, refused_count, failures[FAILURES], failure_total, bytes_in, bytes_out, connects;
static char samples[SAMPLES][512];
static int sample_count;

/* Times in ns, 64 linear steps per power of two: at most 1.6 % off. */
struct times {
    uint64_t steps[64 * 60], count, sum, max;
};
static struct times whole_times, first_times; /* to the last byte, to the first of the body */

static volatile sig_atomic_t told_to_stop;

static void on_sigterm(int number) { told_to_stop = number; }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void record(struct times *t, uint64_t ns) {
    int e = 63 - __builtin_clzll(ns | 1);
    t->steps[e < 6 ? ns : (uint64_t)(e - 5) * 64 + ((ns >> (e - 6)) & 63)]++;
    t->count++;
    t->sum += ns;
    if (ns > t->max) t->max = ns;
}

static double percentile_us(const struct times *t, double share) {
    uint64_t rank = (uint64_t)(share * (double)t->count + 0.999999), seen = 0;
    for (size_t i = 0; i < sizeof t->steps / sizeof *t->steps; i++) {
        seen += t->steps[i];
        if (seen >= rank && seen) {
            if (i < 64) return (double)i / 1e3;
            uint64_t step = 1ull << (i / 64 - 1);
            return (double)((64 + i % 64) * step + step / 2) / 1e3;
        }
    }
    return 0;
}

static void drop(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->phase = IDLE;
    c->want_write = false;
}

static void fail(struct connection *c, enum failure why, const char *detail) {
    failures[why]++;
    failure_total++;
    if (sample_count < SAMPLES) {
        char text[PEEK_MAX + 1];
        size_t n = 0;
        for (size_t i = 0; i < c->peek_len; i++) /* printable ASCII without JSON's own characters */
            text[n++] = c->peek[i] < ' ' || c->peek[i] > '~' || c->peek[i] == '"' || c->peek[i] == '\\' ? ' ' : c->peek[i];
        text[n] = 0;
        snprintf(samples[sample_count++], sizeof samples[0], "%s: %s; status %d, %llu body bytes: %s",
                 FAILURE_NAMES[why], detail, c->status, (unsigned long long)c->got, text);
    }
    drop(c);
}

static void watch(struct connection *c, bool write) {
    struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
    c->want_write = write;
}

/* Starts a connection without blocking; false when the attempt itself failed. */
static bool dial(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) return false;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connects++;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) return false;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    c->want_write = true;
    return epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) == 0;
}

static void pump(struct connection *c) { /* send what the socket takes */
    const struct entry *e = c->entry;
    const char *head = (const char *)(e + 1);
    uint64_t total = e->head_len + e->body_len;
    while (c->sent < total) {
        struct iovec parts[16];
        int n = 0;
        uint64_t at = c->sent;
        if (at < e->head_len) {
            parts[n++] = (struct iovec){(void *)(head + at), e->head_len - at};
            at = e->head_len;
        }
        while (at < total && n < 16) {
            uint64_t offset = (e->body_at + at - e->head_len) % period;
            uint64_t size = period - offset < total - at ? period - offset : total - at;
            parts[n++] = (struct iovec){(void *)(pattern + offset), size};
            at += size;
        }
        ssize_t sent = writev(c->fd, parts, n);
        if (sent < 0) {
            if (errno == EAGAIN) {
                if (!c->want_write) watch(c, true);
                return;
            }
            /* The server may have answered before it closed: the read side says which it was. */
            if (errno == EPIPE || errno == ECONNRESET) {
                if (c->want_write) watch(c, false);
                return;
            }
            fail(c, CLOSED, strerror(errno));
            return;
        }
        c->sent += (uint64_t)sent;
        bytes_out += (uint64_t)sent;
    }
    if (c->want_write) watch(c, false);
}

static void begin(struct connection *c, const struct entry *e, uint64_t started_ns) {
    c->entry = e;
    c->started_ns = started_ns;
    c->deadline_ns = now_ns() + timeout_ns;
    c->sent = c->got = 0;
    c->head_len = c->line_len = c->peek_len = 0;
    c->in_body = c->chunked = c->close_after = c->mismatch = false;
    c->status = 0;
    c->length = -1;
    if (c->fd < 0) {
        c->phase = CONNECTING;
        if (!dial(c)) fail(c, NOT_CONNECTED, strerror(errno));
        return;
    }
    c->phase = BUSY;
    pump(c);
}

static bool listed(const struct entry *e) { return e->check == CHECK_KEYS || e->check == CHECK_PREFIXES; }

static bool listing_matches(const struct connection *c) {
    const struct entry *e = c->entry;
    const char *open = e->check == CHECK_KEYS ? "<Key>" : "<CommonPrefixes><Prefix>";
    const char *shut = e->check == CHECK_KEYS ? "</Key>" : "</Prefix>";
    uint64_t hash = 14695981039346656037u, count = 0;
    const char *at = c->body, *end = c->body + c->got;
    while ((at = memmem(at, (size_t)(end - at), open, strlen(open)))) {
        at += strlen(open);
        const char *stop = memmem(at, (size_t)(end - at), shut, strlen(shut));
        if (!stop) return false;
        for (; at < stop; at++) hash = (hash ^ (unsigned char)*at) * 1099511628211u;
        hash = (hash ^ '\n') * 1099511628211u;
        count++;
    }
    return count == e->expect_count && hash == e->expect_hash;
}

static void finish(struct connection *c) {
    const struct entry *e = c->entry;
    bool whole = c->sent == e->head_len + e->body_len;
    if (c->status != (int)e->status && !(e->refused && c->status == (int)e->refused)) {
        fail(c, BAD_STATUS, "not the expected status");
        return;
    }
    if (c->status != (int)e->status) {
        refused_count++;
    } else {
        if (!whole) {
            fail(c, BAD_HTTP, "success before the request was sent whole");
            return;
        }
        if (e->check == CHECK_PATTERN && (c->mismatch || c->got != e->expect_len)) {
            fail(c, BAD_BODY, c->mismatch ? "bytes differ" : "wrong length");
            return;
        }
        if (e->check == CHECK_HEAD && c->length != (int64_t)e->expect_len) {
            fail(c, BAD_BODY, "wrong Content-Length");
            return;
        }
        if (listed(e) && (c->mismatch || !listing_matches(c))) {
            fail(c, BAD_BODY, "not the expected listing");
            return;
        }
        ok_count++;
        record(&whole_times, now_ns() - c->started_ns);
        if (c->got) record(&first_times, c->first_ns - c->started_ns);
    }
    c->phase = IDLE;
    if (c->close_after || !whole) drop(c);
}

static void sink(struct connection *c, const char *data, size_t n) { /* decoded body bytes */
    const struct entry *e = c->entry;
    if (!c->got) c->first_ns = now_ns();
    if (c->peek_len < PEEK_MAX) {
        size_t room = PEEK_MAX - c->peek_len, take = n < room ? n : room;
        memcpy(c->peek + c->peek_len, data, take);
        c->peek_len += take;
    }
    if (e->check == CHECK_PATTERN && c->status == (int)e->status && !c->mismatch) {
        if (c->got + n > e->expect_len) c->mismatch = true;
        for (size_t done = 0; done < n && !c->mismatch;) {
            uint64_t offset = (e->expect_at + c->got + done) % period;
            size_t size = n - done < period - offset ? n - done : (size_t)(period - offset);
            if (memcmp(pattern + offset, data + done, size)) c->mismatch = true;
            done += size;
        }
    } else if (listed(e) && !c->mismatch) {
        if (c->got + n > c->body_cap) {
            size_t cap = c->body_cap ? c->body_cap : 1 << 20;
            while (cap < c->got + n) cap *= 2;
            char *grown = cap > BODY_MAX ? NULL : realloc(c->body, cap);
            if (grown) {
                c->body = grown;
                c->body_cap = cap;
            } else {
                c->mismatch = true;
            }
        }
        if (!c->mismatch) memcpy(c->body + c->got, data, n);
    }
    c->got += n;
}

/* Parses status line and headers; false when they are not HTTP/1.1 as this client understands it. */
static bool parse_head(struct connection *c) {
    c->head[c->head_len] = 0;
    int minor;
    if (sscanf(c->head, "HTTP/1.%d %3d", &minor, &c->status) != 2) return false;
    c->close_after = minor == 0;
    for (char *line = strstr(c->head, "\r\n"); line && line[2] != '\r'; line = strstr(line, "\r\n")) {
        line += 2;
        char *value = strpbrk(line, ":\r");
        if (!value || *value != ':') return false;
        size_t name = (size_t)(value - line);
        value += 1 + strspn(value + 1, " \t");
        if (name == 14 && !strncasecmp(line, "content-length", 14)) {
            char *end;
            c->length = strtoll(value, &end, 10);
            if (end == value || c->length < 0) return false;
        } else if (name == 17 && !strncasecmp(line, "transfer-encoding", 17)) {
            if (strncasecmp(value, "chunked", 7)) return false;
            c->chunked = true;
        } else if (name == 10 && !strncasecmp(line, "connection", 10)) {
            if (!strncasecmp(value, "close", 5)) c->close_after = true;
        }
    }
    return true;
}

/* Feeds a chunked body; 1 when it ended, 0 when more is needed, -1 when it is malformed. */
static int feed_chunks(struct connection *c, const char *data, size_t n, size_t *used) {
    size_t i = 0;
    while (i < n) {
        if (c->chunk == CHUNK_DATA) {
            size_t take = n - i < c->chunk_left ? n - i : (size_t)c->chunk_left;
            sink(c, data + i, take);
            i += take;
            c->chunk_left -= take;
            if (!c->chunk_left) c->chunk = CHUNK_END;
            continue;
        }
        char byte = data[i++];
        if (byte != '\n') {
            if (c->line_len == sizeof c->line - 1) return -1;
            c->line[c->line_len++] = byte;
            continue;
        }
        if (!c->line_len || c->line[c->line_len - 1] != '\r') return -1;
        c->line[--c->line_len] = 0;
        size_t line_len = c->line_len;
        c->line_len = 0;
        if (c->chunk == CHUNK_SIZE) {
            char *end;
            c->chunk_left = strtoull(c->line, &end, 16);
            if (end == c->line || (*end && *end != ';')) return -1;
            c->chunk = c->chunk_left ? CHUNK_DATA : CHUNK_TRAILER;
        } else if (c->chunk == CHUNK_END) {
            if (line_len) return -1;
            c->chunk = CHUNK_SIZE;
        } else if (!line_len) {
            *used = i;
            return 1;
        }
    }
    *used = i;
    return 0;
}

static void feed(struct connection *c, const char *data, size_t n) {
    while (!c->in_body) {
        size_t room = HEAD_MAX - c->head_len, take = n < room ? n : room, before = c->head_len;
        memcpy(c->head + before, data, take);
        c->head_len += take;
        size_t from = before < 3 ? 0 : before - 3;
        char *end = memmem(c->head + from, c->head_len - from, "\r\n\r\n", 4);
        if (!end) {
            if (c->head_len == HEAD_MAX) fail(c, BAD_HTTP, "response head too large");
            return;
        }
        size_t head = (size_t)(end + 4 - c->head), used = head - before;
        c->head_len = head;
        if (!parse_head(c)) {
            fail(c, BAD_HTTP, "malformed response head");
            return;
        }
        data += used;
        n -= used;
        if (c->status >= 100 && c->status < 200) { /* interim answer: the real one follows */
            c->head_len = 0;
            if (!n) return;
            continue;
        }
        c->in_body = true;
        c->chunk = CHUNK_SIZE;
        if (c->entry->check == CHECK_HEAD || c->status == 204 || c->status == 304) {
            if (n) fail(c, BAD_HTTP, "bytes after a response without a body");
            else finish(c);
            return;
        }
        if (!c->chunked && c->length < 0) {
            fail(c, BAD_HTTP, "neither Content-Length nor chunked");
            return;
        }
    }
    if (c->chunked) {
        size_t used = 0;
        int state = feed_chunks(c, data, n, &used);
        if (state < 0 || (state && used != n)) fail(c, BAD_HTTP, "malformed chunked body");
        else if (state) finish(c);
        return;
    }
    if (c->got + n > (uint64_t)c->length) {
        fail(c, BAD_HTTP, "body longer than Content-Length");
        return;
    }
    sink(c, data, n);
    if (c->got == (uint64_t)c->length) finish(c);
}

static void on_event(struct connection *c, uint32_t events) {
    static char buffer[READ_BYTES];
    if (c->phase == CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c, NOT_CONNECTED, strerror(error));
            return;
        }
        c->phase = BUSY;
        pump(c);
        return;
    }
    if (c->phase == BUSY && events & EPOLLOUT) pump(c);
    if (c->fd < 0 || !(events & (EPOLLIN | EPOLLERR | EPOLLHUP))) return;
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (c->phase == IDLE) { /* bytes nobody asked for cannot be attributed; either way this socket is done */
        drop(c);
        return;
    }
    if (n <= 0) {
        fail(c, CLOSED, n ? strerror(errno) : "connection closed before the response ended");
        return;
    }
    bytes_in += (uint64_t)n;
    feed(c, buffer, (size_t)n);
}

static const void *map(const char *path, uint64_t *size) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || !st.st_size) {
        fprintf(stderr, "loadgen: cannot read %s\n", path);
        exit(2);
    }
    const void *at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED) {
        perror("loadgen: mmap");
        exit(2);
    }
    close(fd);
    *size = (uint64_t)st.st_size;
    return at;
}

static void load_plan(const char *path) {
    uint64_t size, at = 16;
    const char *plan = map(path, &size);
    if (size < 16 || memcmp(plan, "TLPLAN01", 8)) goto bad;
    memcpy(&entry_count, plan + 8, 8);
    if (!entry_count || entry_count > size / sizeof(struct entry)) goto bad;
    entries = malloc(entry_count * sizeof *entries);
    if (!entries) goto bad;
    for (uint64_t i = 0; i < entry_count; i++) {
        const struct entry *e = (const struct entry *)(plan + at);
        if (at + sizeof *e > size || at + sizeof *e + e->head_len > size || e->check > CHECK_PREFIXES) goto bad;
        entries[i] = e;
        at += sizeof *e + (e->head_len + 7u) / 8 * 8;
    }
    return;
bad:
    fprintf(stderr, "loadgen: %s is not a plan\n", path);
    exit(2);
}

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"plan", 1, 0, 'f'}, {"pattern", 1, 0, 'b'}, {"connections", 1, 0, 'c'},
        {"seconds", 1, 0, 's'}, {"count", 1, 0, 'n'}, {"timeout", 1, 0, 't'}, {"rate", 1, 0, 'r'},
        {"max-errors", 1, 0, 'e'}, {"cycle", 0, 0, 'y'}, {0}};
    const char *host = "127.0.0.1", *plan = NULL, *pattern_path = NULL;
    int port = 0, option;
    uint64_t connections = 1, limit = UINT64_MAX, max_errors = 100;
    double run_s = 10, timeout_s = 30, rate = 0;
    bool cycle = false;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) switch (option) {
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'f': plan = optarg; break;
        case 'b': pattern_path = optarg; break;
        case 'c': connections = strtoull(optarg, NULL, 10); break;
        case 's': run_s = atof(optarg); break;
        case 'n': limit = strtoull(optarg, NULL, 10); break;
        case 't': timeout_s = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'e': max_errors = strtoull(optarg, NULL, 10); break;
        case 'y': cycle = true; break;
        default: return 2;
        }
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (!plan || !pattern_path || !port || inet_pton(AF_INET, host, &server.sin_addr) != 1 || !connections ||
        connections > 10000 || run_s <= 0 || timeout_s <= 0 || rate < 0) {
        fprintf(stderr, "loadgen: --port, --plan, --pattern and positive bounds are needed\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_sigterm); /* issue nothing more, await what is in flight, and report */
    pattern = map(pattern_path, &period);
    load_plan(plan);
    if (!cycle && entry_count < limit) limit = entry_count;
    timeout_ns = (uint64_t)(timeout_s * 1e9);
    struct connection *all = calloc(connections, sizeof *all);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (!all || poll_fd < 0 || timer_fd < 0) {
        perror("loadgen");
        return 2;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    for (uint64_t i = 0; i < connections; i++) { /* connections are made before the clock starts */
        struct connection *c = &all[i];
        c->fd = -1;
        if (dial(c)) {
            struct pollfd wait = {.fd = c->fd, .events = POLLOUT};
            int error = 0;
            socklen_t size = sizeof error;
            if (poll(&wait, 1, (int)(timeout_s * 1e3)) == 1) getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            else error = ETIMEDOUT;
            if (!error) {
                watch(c, false);
                continue;
            }
        }
        drop(c); /* its first request dials again, and fails for all to see */
    }

    uint64_t start = now_ns(), stop = start + (uint64_t)(run_s * 1e9), issued = 0, swept = start, end = start;
    for (;;) {
        uint64_t now = now_ns(), next = 0, busy = 0;
        bool issuing = issued < limit && now < stop && failure_total < max_errors && !told_to_stop;
        for (uint64_t i = 0; i < connections; i++) {
            struct connection *c = &all[i];
            if (c->phase == IDLE && issuing) {
                /* Paced requests are timed from when they were due, so that a stall is seen by all it delays. */
                uint64_t due = rate > 0 ? start + (uint64_t)((double)issued / rate * 1e9) : now;
                if (due <= now) {
                    begin(c, entries[issued++ % entry_count], due);
                    issuing = issued < limit && failure_total < max_errors;
                } else if (due < stop) {
                    next = due;
                } else {
                    issuing = false;
                }
            }
            busy += c->phase != IDLE;
        }
        if (!busy && !issuing) break;
        if (next) {
            struct itimerspec at = {.it_value = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)}};
            timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
        }
        struct epoll_event ready[256];
        int n = epoll_wait(poll_fd, ready, 256, busy || next ? 50 : 0);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr) {
                on_event(ready[i].data.ptr, ready[i].events);
            } else {
                uint64_t fired;
                if (read(timer_fd, &fired, sizeof fired) < 0 && errno != EAGAIN) perror("loadgen: timer");
            }
        }
        end = now_ns();
        if (end - swept > 50000000u) {
            swept = end;
            for (uint64_t i = 0; i < connections; i++)
                if (all[i].phase != IDLE && all[i].deadline_ns < end) fail(&all[i], TIMED_OUT, "no complete response in time");
        }
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"issued\": %llu, \"ok\": %llu, \"refused\": %llu, \"errors\": %llu, \"elapsed_s\": %.6f, ",
           (unsigned long long)issued, (unsigned long long)ok_count, (unsigned long long)refused_count,
           (unsigned long long)failure_total, (double)(end - start) / 1e9);
    printf("\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"mean_us\": %.1f, ", 
           percentile_us(&whole_times, 0.5), percentile_us(&whole_times, 0.9), percentile_us(&whole_times, 0.99),
           (double)whole_times.max / 1e3, ok_count ? (double)whole_times.sum / (double)ok_count / 1e3 : 0);
    printf("\"first_p50_us\": %.1f, \"first_p99_us\": %.1f, ", percentile_us(&first_times, 0.5),
           percentile_us(&first_times, 0.99));
    printf("\"bytes_in\": %llu, \"bytes_out\": %llu, \"connects\": %llu, \"client_cpu_s\": %.6f, \"failures\": {",
           (unsigned long long)bytes_in, (unsigned long long)bytes_out, (unsigned long long)connects,
           seconds(usage.ru_utime) + seconds(usage.ru_stime));
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", FAILURE_NAMES[i], (unsigned long long)failures[i]);
    printf("}, \"samples\": [");
    for (int i = 0; i < sample_count; i++) printf("%s\"%s\"", i ? ", " : "", samples[i]);
    printf("]}\n");
    return 0;
}
