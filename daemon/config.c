/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.c - the reader of skvcd.conf: sections and keys of a file, or one override, into struct config.
 *
 * Start-up only, control thread.  inih splits lines into keys and values; lines, sections and duplicates
 * are watched here, because inih neither reports empty sections nor long lines.  What a key is and what
 * it may hold is the table's business (config_table.c).
 */
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_FILE_BYTES_MAX (256u << 10)
#define CONFIG_UID_MAX (UINT32_MAX - 1) /* (uid_t)-1 is nobody's */
#define CONFIG_TENANT_QUOTA_BYTES_MAX (UINT64_C(1) << 50)
#define CONFIG_TENANT_PREFIX "tenant "

/* ---- one line that says what is wrong ---- */

struct text {
	char *buf;
	size_t cap;
	size_t len;
};

static void text_add(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void text_add(struct text *t, const char *format, ...)
{
	va_list args;
	int n;

	if (t->len + 1 >= t->cap)
		return;
	va_start(args, format);
	n = vsnprintf(t->buf + t->len, t->cap - t->len, format, args);
	va_end(args);
	if (n > 0)
		t->len = (size_t)n < t->cap - t->len ? t->len + (size_t)n : t->cap - 1;
}

/* Whatever came from a file may not break the promise of one printable line. */
static void text_clean(struct text *t)
{
	for (size_t i = 0; i < t->len; i++)
		if ((unsigned char)t->buf[i] < ' ' || (unsigned char)t->buf[i] == 0x7f)
			t->buf[i] = '?';
}

static int fail(char *err, size_t err_bytes, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int fail(char *err, size_t err_bytes, const char *format, ...)
{
	struct text t = { err, err_bytes, 0 };
	va_list args;

	if (err_bytes) {
		va_start(args, format);
		(void)vsnprintf(err, err_bytes, format, args);
		va_end(args);
		t.len = strlen(err);
		text_clean(&t);
	}
	return -EINVAL;
}

/* ---- tenants ---- */

static bool tenant_name_ok(const char *name)
{
	size_t len = strlen(name);

	if (!len || len >= sizeof(((struct config_tenant *)0)->name))
		return false;
	for (; *name; name++)
		if (!(*name >= 'a' && *name <= 'z') && !(*name >= 'A' && *name <= 'Z') &&
		    !(*name >= '0' && *name <= '9') && !strchr("-_.", *name))
			return false;
	return true;
}

/* Finds or makes the tenant of a section; NULL with *ret_wrong set. */
static struct config_tenant *tenant_section(struct config *c, const char *name,
					    const char **ret_wrong)
{
	struct config_tenant *t;

	if (!tenant_name_ok(name)) {
		*ret_wrong = "bad tenant name; allowed: 1 to 31 of a-z A-Z 0-9 - _ .";
		return NULL;
	}
	/* Other users become the tenants "uid-N": a section may not pass for one of them. */
	if (!strncmp(name, "uid-", 4)) {
		*ret_wrong =
			"tenant names that start with uid- are the daemon's own; allowed: another name";
		return NULL;
	}
	for (uint32_t i = 0; i < c->tenants_count; i++)
		if (!strcmp(c->tenants[i].name, name))
			return &c->tenants[i];
	if (c->tenants_count == CONFIG_TENANTS_MAX) {
		*ret_wrong = "too many tenant sections; allowed: at most 64";
		return NULL;
	}
	t = &c->tenants[c->tenants_count++];
	memset(t, 0, sizeof(*t));
	memcpy(t->name, name, strlen(name));
	t->uid_first = 1; /* first > last: not given yet, see config_check() */
	t->uid_last = 0;
	return t;
}

static const char *set_tenant_uids(struct config_tenant *t, const char *value)
{
	const char *wrong = "not a user id or range; allowed: N or N-M, each 0..4294967294";
	const char *p;
	uint64_t first, last;

	if (config_parse_u64(value, &p, &first) < 0)
		return wrong;
	last = first;
	if (*p == '-' && config_parse_u64(p + 1, &p, &last) < 0)
		return wrong;
	if (*p || first > last || last > CONFIG_UID_MAX)
		return wrong;
	t->uid_first = (uint32_t)first;
	t->uid_last = (uint32_t)last;
	return NULL;
}

static const char *set_tenant_value(struct config_tenant *t, const char *key, const char *value)
{
	uint64_t quota_bytes;

	if (!strcmp(key, "uid"))
		return set_tenant_uids(t, value);
	if (!strcmp(key, "quota")) {
		if (config_parse_size(value, &quota_bytes) < 0 ||
		    quota_bytes > CONFIG_TENANT_QUOTA_BYTES_MAX)
			return "not a size; allowed: 0..1024T (K, M, G, T)";
		t->quota_bytes = quota_bytes;
		return NULL;
	}
	return "unknown key; allowed: uid, quota";
}

/* ---- sections and keys ---- */

static bool section_known(const char *section)
{
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k))
		if (!strcmp(k->section, section))
			return true;
	return false;
}

static const struct config_key *find_key(const char *section, const char *key)
{
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k))
		if (!strcmp(k->section, section) && !strcmp(k->key, key))
			return k;
	return NULL;
}

static int fail_section(const char *where, const char *section, char *err, size_t err_bytes)
{
	struct text t = { err, err_bytes, 0 };
	const char *last = "";

	if (!err_bytes)
		return -EINVAL;
	text_add(&t, "%s: [%s]: unknown section; allowed: ", where, section);
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k)) {
		if (strcmp(k->section, last) != 0)
			text_add(&t, "[%s] ", k->section);
		last = k->section;
	}
	text_add(&t, "[tenant NAME]");
	text_clean(&t);
	return -EINVAL;
}

static int fail_key(const char *where, const char *section, const char *key, char *err,
		    size_t err_bytes)
{
	struct text t = { err, err_bytes, 0 };
	bool first = true;

	if (!err_bytes)
		return -EINVAL;
	text_add(&t, "%s: [%s] %s: unknown key; allowed: ", where, section, key);
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k))
		if (!strcmp(k->section, section)) {
			text_add(&t, "%s%s", first ? "" : ", ", k->key);
			first = false;
		}
	text_clean(&t);
	return -EINVAL;
}

/* Enter a section: it exists from its header on, even without keys. */
static int enter_section(struct config *c, const char *where, const char *section, char *err,
			 size_t err_bytes)
{
	size_t prefix = strlen(CONFIG_TENANT_PREFIX);
	const char *wrong = NULL;

	if (!strncmp(section, CONFIG_TENANT_PREFIX, prefix)) {
		if (!tenant_section(c, section + prefix, &wrong))
			return fail(err, err_bytes, "%s: [%s]: %s", where, section, wrong);
		return 0;
	}
	if (!section_known(section))
		return fail_section(where, section, err, err_bytes);
	return 0;
}

static int set_key(struct config *c, const char *where, const char *section, const char *key,
		   const char *value, char *err, size_t err_bytes)
{
	size_t prefix = strlen(CONFIG_TENANT_PREFIX);
	const struct config_key *k;
	char allowed[CONFIG_ALLOWED_BYTES];
	const char *wrong = NULL;
	int r;

	r = enter_section(c, where, section, err, err_bytes);
	if (r < 0)
		return r;
	if (!strncmp(section, CONFIG_TENANT_PREFIX, prefix)) {
		wrong = set_tenant_value(tenant_section(c, section + prefix, &wrong), key, value);
		if (wrong)
			return fail(err, err_bytes, "%s: [%s] %s: %s", where, section, key, wrong);
		return 0;
	}
	k = find_key(section, key);
	if (!k)
		return fail_key(where, section, key, err, err_bytes);
	wrong = config_key_set(c, k, value);
	if (!wrong)
		return 0;
	(void)config_key_allowed(k, allowed, sizeof(allowed));
	return fail(err, err_bytes, "%s: [%s] %s: \"%.64s\" is %s; allowed: %s", where, section,
		    key, value, wrong, allowed);
}

int config_set(struct config *c, const char *assignment, char *err, size_t err_bytes)
{
	const char *equals = strchr(assignment, '=');
	const char *dot = NULL;
	char section[64], key[64];

	/* Tenant names may have dots, keys have none: the last one before '=' divides. */
	for (const char *p = assignment; equals && p < equals; p++)
		if (*p == '.')
			dot = p;
	if (!dot || dot == assignment || (size_t)(dot - assignment) >= sizeof(section) ||
	    (size_t)(equals - dot - 1) >= sizeof(key))
		return fail(err, err_bytes,
			    "-o %.64s: not an override; allowed: -o section.key=value", assignment);
	(void)snprintf(section, sizeof(section), "%.*s", (int)(dot - assignment), assignment);
	(void)snprintf(key, sizeof(key), "%.*s", (int)(equals - dot - 1), dot + 1);
	return set_key(c, "-o", section, key, equals + 1, err, err_bytes);
}

/* ---- the file ---- */

struct reader {
	const char *name;			 /* borrowed: what error lines call the file */
	const char *at, *end;			 /* borrowed bytes not read yet */
	unsigned line;				 /* of the last line handed out; 1 is the first */
	unsigned failed_line;			 /* 0: none */
	bool seen[CONFIG_KEYS_MAX];		 /* per key of the table: given already */
	uint8_t tenant_seen[CONFIG_TENANTS_MAX]; /* 1 uid, 2 quota */
	struct config *config;
	char *err;
	size_t err_bytes;
};

static void reader_fail(struct reader *in, const char *what)
{
	in->failed_line = in->line;
	(void)fail(in->err, in->err_bytes, "%s:%u: %s", in->name, in->line, what);
}

static void reader_where(const struct reader *in, char *ret, size_t ret_bytes)
{
	(void)snprintf(ret, ret_bytes, "%s:%u", in->name, in->line);
}

/* Section headers, seen before inih does: so an empty or misspelt section is not passed over. */
static void reader_section(struct reader *in, const char *line)
{
	char section[64], where[PATH_MAX + 16];
	const char *close = strchr(line, ']');
	const char *rest;

	if (!close || (size_t)(close - line) > 48) { /* inih keeps 49 bytes of a section's name */
		reader_fail(in, "not a section header; allowed: [name], at most 48 characters");
		return;
	}
	rest = close + 1 + strspn(close + 1, " \t\r\n");
	if (*rest && *rest != ';' && *rest != '#') {
		reader_fail(in, "text after a section header; allowed: nothing, or a comment");
		return;
	}
	(void)snprintf(section, sizeof(section), "%.*s", (int)(close - line - 1), line + 1);
	reader_where(in, where, sizeof(where));
	if (enter_section(in->config, where, section, in->err, in->err_bytes) < 0)
		in->failed_line = in->line;
}

/* ini_reader: one line without its indentation, for inih would take that as a continued value. */
static char *reader_next(char *line, int cap, void *user)
{
	struct reader *in = user;
	const char *start = in->at, *stop;
	size_t len;

	if (in->failed_line || in->at == in->end)
		return NULL;
	in->line++;
	stop = memchr(in->at, '\n', (size_t)(in->end - in->at));
	stop = stop ? stop : in->end;
	in->at = stop < in->end ? stop + 1 : stop;
	if (memchr(start, '\0', (size_t)(stop - start))) {
		reader_fail(in, "has a NUL byte: not a text file");
		return NULL;
	}
	if (in->line == 1 && stop - start >= 3 && !memcmp(start, "\xef\xbb\xbf", 3))
		start += 3; /* an editor's byte order mark */
	while (start < stop && (*start == ' ' || *start == '\t'))
		start++;
	len = (size_t)(stop - start);
	if (len + 2 > (size_t)cap) {
		char what[80];

		(void)snprintf(what, sizeof(what), "line too long; allowed: at most %d characters",
			       cap - 2);
		reader_fail(in, what);
		return NULL;
	}
	memcpy(line, start, len);
	line[len] = '\n';
	line[len + 1] = '\0';
	if (line[0] == '[')
		reader_section(in, line);
	return in->failed_line ? NULL : line;
}

/* Was this key given before?  Marks it as given. */
static bool reader_again(struct reader *in, const char *section, const char *key)
{
	size_t prefix = strlen(CONFIG_TENANT_PREFIX);
	const struct config_key *k = find_key(section, key);
	bool again = false;

	if (k) {
		again = in->seen[config_key_index(k)];
		in->seen[config_key_index(k)] = true;
	} else if (!strncmp(section, CONFIG_TENANT_PREFIX, prefix)) {
		for (uint32_t i = 0; i < in->config->tenants_count; i++) {
			uint8_t bit = !strcmp(key, "uid") ? 1 : 2;

			if (strcmp(in->config->tenants[i].name, section + prefix) != 0)
				continue;
			again = in->tenant_seen[i] & bit;
			in->tenant_seen[i] |= bit;
		}
	}
	return again;
}

/* ini_handler: 1 goes on, 0 is an error of this line. */
static int reader_key(void *user, const char *section, const char *key, const char *value)
{
	struct reader *in = user;
	char where[PATH_MAX + 16];

	if (in->failed_line)
		return 0;
	reader_where(in, where, sizeof(where));
	if (!section[0]) {
		reader_fail(in, "key before the first section; allowed: [section] first");
		return 0;
	}
	if (set_key(in->config, where, section, key, value, in->err, in->err_bytes) < 0) {
		in->failed_line = in->line;
		return 0;
	}
	if (reader_again(in, section, key)) {
		in->failed_line = in->line;
		(void)fail(in->err, in->err_bytes, "%s: [%s] %s: given twice; allowed: once", where,
			   section, key);
		return 0;
	}
	return 1;
}

int config_load_bytes(const char *name, const char *bytes, size_t bytes_count, struct config *ret,
		      char *err, size_t err_bytes)
{
	struct config config;
	struct reader in = {
		.name = name,
		.at = bytes,
		.end = bytes + bytes_count,
		.config = &config,
		.err = err,
		.err_bytes = err_bytes,
	};
	int line;

	config_default(&config);
	line = ini_parse_stream(reader_next, &in, reader_key, &in);
	if (line < 0) {
		(void)fail(err, err_bytes, "%s: out of memory", name);
		return -ENOMEM;
	}
	/* A line that inih itself does not understand never reaches the handler. */
	if (line > 0 && (!in.failed_line || (unsigned)line < in.failed_line))
		return fail(err, err_bytes,
			    "%s:%d: not understood; allowed: [section], key = value, or a "
			    "comment after # or ;",
			    name, line);
	if (in.failed_line)
		return -EINVAL;
	*ret = config;
	return 0;
}

static int read_file(const char *path, char **ret_bytes, size_t *ret_count, char *err,
		     size_t err_bytes)
{
	char *bytes;
	size_t count = 0;
	int fd, r = 0;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0) {
		r = -errno;
		(void)fail(err, err_bytes, "%s: cannot be opened: %s", path, strerror(-r));
		return r;
	}
	bytes = malloc(CONFIG_FILE_BYTES_MAX + 1);
	if (!bytes) {
		(void)fail(err, err_bytes, "%s: out of memory", path);
		r = -ENOMEM;
	}
	while (!r && count <= CONFIG_FILE_BYTES_MAX) {
		ssize_t n = read(fd, bytes + count, CONFIG_FILE_BYTES_MAX + 1 - count);

		if (!n)
			break;
		if (n > 0)
			count += (size_t)n;
		else if (errno != EINTR) {
			r = -errno;
			(void)fail(err, err_bytes, "%s: cannot be read: %s", path, strerror(-r));
		}
	}
	(void)close(fd);
	if (!r && count > CONFIG_FILE_BYTES_MAX)
		r = fail(err, err_bytes, "%s: too long; allowed: at most %u KiB", path,
			 CONFIG_FILE_BYTES_MAX >> 10);
	if (r < 0) {
		free(bytes);
		return r;
	}
	*ret_bytes = bytes;
	*ret_count = count;
	return 0;
}

int config_load(const char *path, struct config *ret, char *err, size_t err_bytes)
{
	char *bytes = NULL;
	size_t count = 0;
	int r;

	r = read_file(path, &bytes, &count, err, err_bytes);
	if (r < 0)
		return r;
	r = config_load_bytes(path, bytes, count, ret, err, err_bytes);
	free(bytes);
	return r;
}

/* ---- what no single key can see ---- */

static int check_tenants(const struct config *c, char *err, size_t err_bytes)
{
	for (uint32_t i = 0; i < c->tenants_count; i++) {
		const struct config_tenant *t = &c->tenants[i];

		if (t->uid_first > t->uid_last)
			return fail(err, err_bytes, "[tenant %s] uid: missing; allowed: N or N-M",
				    t->name);
		for (uint32_t k = 0; k < i; k++) {
			const struct config_tenant *o = &c->tenants[k];

			if (t->uid_first <= o->uid_last && o->uid_first <= t->uid_last)
				return fail(err, err_bytes,
					    "[tenant %s] uid: %u-%u overlaps [tenant %s]'s "
					    "%u-%u; allowed: each user in one tenant",
					    t->name, t->uid_first, t->uid_last, o->name,
					    o->uid_first, o->uid_last);
		}
	}
	return 0;
}

static int check_nvme(const struct config *c, char *err, size_t err_bytes)
{
	struct config_nvme_device device[CONFIG_NVME_DEVICES_MAX];
	uint64_t segment = c->nvme_segment_bytes;
	int n = config_nvme_devices(c, device);

	if (n < 0)
		return fail(
			err, err_bytes,
			"[nvme] path: \"%.64s\" is no list of files; allowed: up to %u different "
			"paths with commas between them, each with a size of its own behind it or "
			"not",
			c->nvme_path, CONFIG_NVME_DEVICES_MAX);
	for (int i = 0; i < n; i++)
		if (device[i].bytes % segment || device[i].bytes / segment < 4)
			return fail(err, err_bytes,
				    "[nvme] size: %" PRIu64 "K; allowed: a multiple of segment "
				    "(%" PRIu64 "M), at least 4 of them",
				    device[i].bytes >> 10, segment >> 20);
	return 0;
}

int config_check(const struct config *c, char *err, size_t err_bytes)
{
	uint64_t segment = c->nvme_segment_bytes;
	struct sockaddr_storage address;
	socklen_t len;
	int r;

	if (c->accept_percent >= c->full_percent)
		return fail(err, err_bytes,
			    "[host] accept_percent: %u; allowed: below full_percent, "
			    "which is %u",
			    c->accept_percent, c->full_percent);
	if (c->spill_percent >= c->full_percent)
		return fail(err, err_bytes,
			    "[host] spill_percent: %u; allowed: below full_percent, "
			    "which is %u",
			    c->spill_percent, c->full_percent);
	if (c->arena_session_bytes > c->arena_total_bytes)
		return fail(err, err_bytes,
			    "[host] arena_session: larger than arena_total; allowed: at "
			    "most %" PRIu64 "M",
			    c->arena_total_bytes >> 20);
	if (segment & (segment - 1))
		return fail(err, err_bytes,
			    "[nvme] segment: %" PRIu64 " is not a power of two; allowed: "
			    "1M, 2M, 4M .. 256M",
			    segment);
	r = check_nvme(c, err, err_bytes);
	if (r < 0)
		return r;
	if (c->lease_ttl_ns > c->lease_ttl_max_ns)
		return fail(err, err_bytes,
			    "[limits] lease_ttl: longer than lease_ttl_max; allowed: at "
			    "most %" PRIu64 "ms",
			    c->lease_ttl_max_ns / 1000000);
	if (c->metrics_listen[0] && config_parse_address(c->metrics_listen, &address, &len) < 0)
		return fail(err, err_bytes,
			    "[metrics] listen: \"%.64s\" is no address and port; allowed: "
			    "empty, 127.0.0.1:9472, [::1]:9472",
			    c->metrics_listen);
	if (c->bus_socket[0] && !strcmp(c->bus_socket, c->socket))
		return fail(err, err_bytes,
			    "[daemon] bus_socket: same as socket; allowed: another path");
	return check_tenants(c, err, err_bytes);
}
