/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.c - read a whole small file.  Runs in the caller's thread, keeps no state.
 */
#include "gpu/model/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/model/report.h"

/* Room for bytes_max + 1, so that a file which grew since fstat is noticed and not cut. */
static int read_fd(const struct report *r, int fd, char *text, size_t bytes_max, size_t *ret_bytes)
{
	size_t used = 0;
	ssize_t got;

	do {
		got = read(fd, text + used, bytes_max + 1 - used);
		if (got > 0)
			used += (size_t)got;
		else if (got < 0 && errno != EINTR)
			return report_fail(r, -errno, "%s", strerror(errno));
	} while (got != 0 && used <= bytes_max);
	if (used > bytes_max)
		return report_fail(r, -EFBIG, "changed while it was read");
	text[used] = '\0';
	*ret_bytes = used;
	return 0;
}

static int check_fd(const struct report *r, int fd, size_t bytes_max, size_t *ret_bytes)
{
	struct stat sb;

	if (fstat(fd, &sb) < 0)
		return report_fail(r, -errno, "%s", strerror(errno));
	if (!S_ISREG(sb.st_mode))
		return report_fail(r, -EINVAL, "not a regular file");
	if ((unsigned long long)sb.st_size > bytes_max)
		return report_fail(r, -EFBIG, "larger than %zu bytes", bytes_max);
	*ret_bytes = (size_t)sb.st_size;
	return 0;
}

int file_read(const struct report *r, const char *path, size_t bytes_max, char **ret_text,
	      size_t *ret_bytes)
{
	char *text = NULL;
	size_t bytes = 0;
	int fd, rc;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return report_fail(r, -errno, "%s", strerror(errno));
	rc = check_fd(r, fd, bytes_max, &bytes);
	if (rc == 0) {
		text = malloc(bytes + 1);
		rc = text ? read_fd(r, fd, text, bytes, &bytes)
			  : report_fail(r, -ENOMEM, "no memory");
	}
	(void)close(fd);
	if (rc < 0) {
		free(text);
		return rc;
	}
	*ret_text = text;
	*ret_bytes = bytes;
	return 0;
}
