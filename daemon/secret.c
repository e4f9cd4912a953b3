/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secret.c - read the daemon's secret, or make it: written to a nameless file first and linked into place,
 * so that a crash leaves either no secret or a whole one, and of two daemons only one makes it.
 */
#include "daemon/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(int error, char *err, size_t err_bytes, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static int fail(int error, char *err, size_t err_bytes, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(err, err_bytes, format, args);
	va_end(args);
	return error;
}

static int open_dir(const char *path, int *ret_fd, char *err, size_t err_bytes)
{
	struct stat st;
	int fd, r;

	if (mkdir(path, 0700) < 0 && errno != EEXIST) {
		r = -errno;
		return fail(r, err, err_bytes, "state_dir %s: cannot be made: %s", path,
			    strerror(-r));
	}
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		r = -errno;
		return fail(r, err, err_bytes, "state_dir %s: cannot be opened: %s", path,
			    strerror(-r));
	}
	if (fstat(fd, &st) < 0) {
		r = -errno;
		(void)close(fd);
		return fail(r, err, err_bytes, "state_dir %s: %s", path, strerror(-r));
	}
	/* Whoever may rename files in it could plant a secret of his own. */
	if ((st.st_uid != geteuid() && st.st_uid) || (st.st_mode & 022)) {
		(void)close(fd);
		return fail(-EPERM, err, err_bytes,
			    "state_dir %s: others may write to it; chown it to the "
			    "daemon's user and chmod it to 0700",
			    path);
	}
	*ret_fd = fd;
	return 0;
}

static int read_secret(int dir, uint8_t *ret_secret)
{
	uint8_t bytes[SECRET_BYTES + 1];
	struct stat st;
	ssize_t n;
	int fd, r = 0;

	fd = openat(dir, "secret", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		r = -errno;
	else if (!S_ISREG(st.st_mode) || (st.st_mode & 077) ||
		 (st.st_uid != geteuid() && st.st_uid))
		r = -EPERM;
	if (!r) {
		n = read(fd, bytes, sizeof(bytes));
		r = n < 0 ? -errno : n == SECRET_BYTES ? 0 : -EBADMSG;
	}
	(void)close(fd);
	if (!r)
		memcpy(ret_secret, bytes, SECRET_BYTES);
	explicit_bzero(bytes, sizeof(bytes));
	return r;
}

static int write_secret(int fd)
{
	uint8_t bytes[SECRET_BYTES];
	ssize_t n;
	int r;

	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		return -EIO;
	n = write(fd, bytes, sizeof(bytes));
	r = n < 0 ? -errno : n == (ssize_t)sizeof(bytes) ? 0 : -ENOSPC;
	explicit_bzero(bytes, sizeof(bytes));
	if (!r && fsync(fd) < 0)
		r = -errno;
	return r;
}

/* On file systems without O_TMPFILE: a name of our own, linked into place and removed. */
static int make_named(int dir)
{
	char name[32];
	int fd, r;

	(void)snprintf(name, sizeof(name), "secret.%d.new", (int)getpid());
	(void)unlinkat(dir, name, 0);
	fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_secret(fd);
	if (!r && linkat(dir, name, dir, "secret", 0) < 0 && errno != EEXIST)
		r = -errno;
	(void)unlinkat(dir, name, 0);
	(void)close(fd);
	return r;
}

static int make_secret(int dir)
{
	char proc[32];
	int fd, r;

	fd = openat(dir, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return make_named(dir);
	r = write_secret(fd);
	if (r < 0) {
		(void)close(fd);
		return r;
	}
	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, proc, dir, "secret", AT_SYMLINK_FOLLOW) < 0 && errno != EEXIST)
		r = errno == ENOENT ? make_named(dir) : -errno; /* no /proc here */
	(void)close(fd);
	if (!r && fsync(dir) < 0)
		r = -errno;
	return r;
}

int secret_load(const char *state_dir, uint8_t ret_secret[SECRET_BYTES], char *err,
		size_t err_bytes)
{
	int dir = -1, r;

	r = open_dir(state_dir, &dir, err, err_bytes);
	if (r < 0)
		return r;
	r = read_secret(dir, ret_secret);
	if (r == -ENOENT) {
		r = make_secret(dir);
		if (!r)
			r = read_secret(dir, ret_secret);
	}
	(void)close(dir);
	if (r == -EBADMSG)
		return fail(r, err, err_bytes,
			    "%s/secret: not %u bytes long; remove it (stored namespaces get "
			    "new names)",
			    state_dir, SECRET_BYTES);
	if (r == -EPERM)
		return fail(r, err, err_bytes,
			    "%s/secret: others may read it; chown it to the daemon's user "
			    "and chmod it to 0600",
			    state_dir);
	if (r < 0)
		return fail(r, err, err_bytes, "%s/secret: %s", state_dir, strerror(-r));
	return 0;
}
