/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_file.c - opening, recognising, locking and sizing the NVMe log's file.  Runs at start-up, on the
 * thread that makes the lane; blocking calls are fine here.
 *
 * Nothing is written before the lock is held and what is there was seen to be ours or nothing.  In a new
 * file the superblock comes before the space, so that what a crash leaves behind is still known as ours.
 */
#include "daemon/nvme_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/nvme_format.h"

#define SUPERBLOCK_MAGIC 0x314c564e43564b53ull /* "SKVCNVL1" */
#define SUPERBLOCK_VERSION 3u
#define SUPERBLOCK_VERSION_ALONE \
	2u			   /* before there were sets; what is in the segments is the same */
#define SUPERBLOCK_COPY_OFF 16384u /* in the same I/O */
#define SUPERBLOCK_IO_BYTES NVME_FILE_ALIGN_BYTES_MAX
#define BLANK_BYTES (1u << 20) /* a device counts as blank when this much of it is zero */
#define ALIGN_BYTES_MIN 4096u
#define BUSY_TRIES 1500u
#define BUSY_PAUSE_NS 10000000
#define REMOVED_TRIES 3u

/* Little endian, at offset 0 and at SUPERBLOCK_COPY_OFF; the rest is zero. */
struct superblock {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes; /* NVME_FILE_HEADER_BYTES */
	uint64_t bytes;
	uint64_t segment_bytes;
	uint64_t epoch;	  /* one more at every opening of the set, from 1 */
	uint8_t uuid[16]; /* of this file, made with it */
	uint8_t set[16];  /* of all files that it is used with, made with the first one */
	uint32_t number;  /* which of them */
	uint32_t count;
	uint64_t present; /* the numbers of those that were there at this opening */
	uint64_t xxh3;	  /* XXH3-64 of this struct with this field zero */
};

/* Version 2: up to the uuid the same. */
struct superblock_alone {
	uint8_t same[offsetof(struct superblock, set)];
	uint64_t xxh3;
};

_Static_assert(sizeof(struct superblock) == 96, "superblock");
_Static_assert(sizeof(struct superblock_alone) == 64, "superblock of version 2");

/* While opening. */
struct opening {
	const struct nvme_file_options *options;
	struct nvme_file *file;
	char *err;
	unsigned err_bytes;
	bool ours; /* has our superblock: sb */
	struct superblock sb;
	uint8_t *buf; /* BLANK_BYTES, aligned; owned */
};

__attribute__((format(printf, 3, 4))) static int say(struct opening *o, int r, const char *format,
						     ...)
{
	va_list ap;
	int n;

	n = snprintf(o->err, o->err_bytes, "NVMe log %s: ", o->options->path);
	if (n < 0 || (unsigned)n >= o->err_bytes)
		return r;
	va_start(ap, format);
	(void)vsnprintf(o->err + n, o->err_bytes - (unsigned)n, format, ap);
	va_end(ap);
	return r;
}

static uint64_t superblock_xxh3(const struct superblock *sb)
{
	struct superblock copy = *sb;

	copy.xxh3 = 0;
	return XXH3_64bits(&copy, sizeof(copy));
}

static uint64_t alone_xxh3(const struct superblock_alone *sb)
{
	struct superblock_alone copy = *sb;

	copy.xxh3 = 0;
	return XXH3_64bits(&copy, sizeof(copy));
}

static int open_path(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | flags, 0600);

	return fd < 0 ? -errno : fd;
}

/*
 * A process that was killed has its ring, and with it this file, taken apart by the kernel a little after
 * it is gone, seconds on a busy machine: so what says "in use" is tried again, not for ever.  Returns whether to.
 */
static bool busy_wait(int r, unsigned *tries)
{
	const struct timespec pause = { .tv_nsec = BUSY_PAUSE_NS };

	if ((r != -EBUSY && r != -EAGAIN && r != -EACCES) || ++*tries > BUSY_TRIES)
		return false;
	(void)nanosleep(&pause, NULL);
	return true;
}

/* Exclusively: fails when it is mounted, or another daemon's. */
static int open_device(const char *path)
{
	unsigned tries = 0;
	int fd;

	do
		fd = open_path(path, O_EXCL);
	while (fd == -EBUSY && busy_wait(fd, &tries));
	return fd;
}

/* A new file if there is none. */
static int open_fd(struct opening *o)
{
	const char *path = o->options->path;
	struct stat st;
	int fd;

	fd = open_path(path, O_CREAT | O_EXCL);
	o->file->created = fd >= 0;
	if (fd != -EEXIST)
		return fd;
	if (stat(path, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return -ENOTSUP;
	return S_ISBLK(st.st_mode) ? open_device(path) : open_path(path, 0);
}

static int open_any(struct opening *o)
{
	int fd = open_fd(o);

	if (fd == -ENOTSUP)
		return say(o, -EINVAL, "neither a regular file nor a block device");
	if (fd == -EBUSY)
		return say(o, fd, "the device is mounted or in use");
	if (fd < 0)
		return say(o, fd, "cannot open: %s", strerror(-fd));
	o->file->fd = fd;
	/* Not at open(): that would leave the new file behind where it is refused. */
	o->file->direct = fcntl(fd, F_SETFL, O_DIRECT) == 0;
	if (!o->file->direct && !o->options->allow_buffered)
		return say(o, -EOPNOTSUPP, "its filesystem has no direct I/O (O_DIRECT)");
	return 0;
}

static int set_lock(int fd, short type)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET };

	return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* -ESTALE: the file has lost its name while it was waited for; there may be another one. */
static int take_lock(struct opening *o)
{
	unsigned tries = 0;
	struct stat st;
	int r;

	do
		r = set_lock(o->file->fd, F_WRLCK);
	while (busy_wait(r, &tries));
	if (r == -EAGAIN || r == -EACCES)
		return say(o, -EBUSY, "in use by another process");
	if (r < 0)
		return say(o, r, "cannot lock: %s", strerror(-r));
	if (fstat(o->file->fd, &st) == 0 && S_ISREG(st.st_mode) && !st.st_nlink)
		return say(o, -ESTALE, "it was removed meanwhile");
	return 0;
}

/* What direct I/O asks for, by the kernel's word where it has one (Linux 6.1). */
static int find_align(struct opening *o)
{
	/*
	 * Never less than 4096 even where 512 would do: filesystems serialise writes that are not whole
	 * blocks of theirs, and drives with larger sectors read before they write.
	 */
	uint32_t align = ALIGN_BYTES_MIN;
	struct statx sx;

	if (o->file->direct && !statx(o->file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) &&
	    (sx.stx_mask & STATX_DIOALIGN)) {
		if (!sx.stx_dio_offset_align && !o->options->allow_buffered)
			return say(o, -EOPNOTSUPP, "no direct I/O on this file (is it encrypted?)");
		if (sx.stx_dio_mem_align > align)
			align = sx.stx_dio_mem_align;
		if (sx.stx_dio_offset_align > align)
			align = sx.stx_dio_offset_align;
	}
	if (align > NVME_FILE_ALIGN_BYTES_MAX || (align & (align - 1)))
		return say(o, -EOPNOTSUPP,
			   "wants direct I/O aligned to %u bytes; at most %u is supported", align,
			   NVME_FILE_ALIGN_BYTES_MAX);
	o->file->align_bytes = align;
	return 0;
}

static int find_size(struct opening *o)
{
	struct stat st;

	if (fstat(o->file->fd, &st) < 0)
		return say(o, -errno, "cannot stat: %s", strerror(errno));
	o->file->device = S_ISBLK(st.st_mode);
	o->file->size_bytes = (uint64_t)st.st_size;
	if (!o->file->device)
		return 0;
	if (ioctl(o->file->fd, BLKGETSIZE64, &o->file->size_bytes) < 0)
		return say(o, -errno, "cannot find the device's size: %s", strerror(errno));
	if (o->file->size_bytes < o->options->bytes)
		return say(o, -ENOSPC, "the device has %llu bytes, %llu are configured",
			   (unsigned long long)o->file->size_bytes,
			   (unsigned long long)o->options->bytes);
	return 0;
}

static bool all_zero(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if (p[i])
			return false;
	return true;
}

/* A whole superblock, of this version or the one before: as one of this version. */
static bool take_superblock(const uint8_t *p, struct superblock *ret)
{
	struct superblock_alone alone;

	memcpy(ret, p, sizeof(*ret));
	if (ret->magic != SUPERBLOCK_MAGIC)
		return false;
	if (ret->version == SUPERBLOCK_VERSION)
		return ret->xxh3 == superblock_xxh3(ret) && ret->count && ret->count <= 64 &&
		       ret->number < ret->count;
	if (ret->version != SUPERBLOCK_VERSION_ALONE)
		return false;
	memcpy(&alone, p, sizeof(alone));
	memset((uint8_t *)ret + sizeof(alone.same), 0, sizeof(*ret) - sizeof(alone.same));
	memcpy(ret->set, ret->uuid, sizeof(ret->set));
	ret->count = 1;
	ret->present = 1;
	return alone.xxh3 == alone_xxh3(&alone);
}

/* It holds what may be wanted again: then it has to be as configured. */
static int check_sizes(struct opening *o)
{
	const struct nvme_file_options *c = o->options;

	if (!c->keep || (o->sb.bytes == c->bytes && o->sb.segment_bytes == c->segment_bytes))
		return 0;
	return say(o, -EEXIST,
		   "made with size = %lluK and segment = %lluK, configured are %lluK and %lluK: "
		   "configure it as it was, or %s to begin anew",
		   (unsigned long long)o->sb.bytes >> 10,
		   (unsigned long long)o->sb.segment_bytes >> 10,
		   (unsigned long long)c->bytes >> 10, (unsigned long long)c->segment_bytes >> 10,
		   o->file->device ? "wipe its first MiB" : "remove the file");
}

/* Neither copy is whole: of another version, or damaged. */
static int recognise_other(struct opening *o)
{
	const char *remedy = o->file->device ? "wipe its first MiB" : "remove the file";

	if (o->sb.version > SUPERBLOCK_VERSION)
		return say(o, -EEXIST,
			   "made by a newer version (format %u, this is %u): use that, or %s to "
			   "begin anew",
			   o->sb.version, SUPERBLOCK_VERSION, remedy);
	if (o->sb.version >= SUPERBLOCK_VERSION_ALONE && o->options->keep)
		return say(o, -EEXIST, "its first block is damaged: %s to begin anew", remedy);
	return 0; /* version 1 forgot all records at each opening */
}

/* Ours, blank, or somebody else's? */
static int recognise(struct opening *o)
{
	const uint64_t look_bytes = o->file->device ? BLANK_BYTES : SUPERBLOCK_IO_BYTES;
	struct superblock copy;
	bool copy_ok;
	ssize_t n;

	memset(o->buf, 0, BLANK_BYTES);
	n = pread(o->file->fd, o->buf, (size_t)look_bytes, 0);
	if (n < 0)
		return say(o, -errno, "cannot read its first block: %s", strerror(errno));
	o->ours = take_superblock(o->buf, &o->sb);
	copy_ok = take_superblock(o->buf + SUPERBLOCK_COPY_OFF, &copy);
	if (copy_ok && (!o->ours || copy.epoch > o->sb.epoch)) {
		o->sb = copy;
		o->ours = true;
	}
	if (o->ours)
		return check_sizes(o);
	if (copy.magic == SUPERBLOCK_MAGIC && o->sb.magic != SUPERBLOCK_MAGIC)
		o->sb = copy;
	if (o->sb.magic == SUPERBLOCK_MAGIC)
		return recognise_other(o);
	/* Of a regular file, one zero block is what a power cut during its making may leave. */
	if (all_zero(o->buf, (size_t)look_bytes) &&
	    (o->file->device || o->file->size_bytes <= SUPERBLOCK_IO_BYTES))
		return 0;
	if (o->file->device)
		return say(o, -EEXIST,
			   "the device holds something else; wipe its first MiB to give it up");
	return say(o, -EEXIST, "the file holds something else; move it away or name another one");
}

/* A log of which nothing is kept gets another identity each time: then no record of it passes. */
static int make_identity(struct opening *o)
{
	uint8_t *uuid = o->file->uuid;

	if (getrandom(uuid, sizeof(o->file->uuid), 0) != (ssize_t)sizeof(o->file->uuid))
		return say(o, -EIO, "no random numbers to be had");
	uuid[0] |= 1; /* the log's id, which is made of it, is not 0 */
	return 0;
}

static int write_superblock(struct opening *o)
{
	const struct nvme_member *m = &o->file->member;
	struct superblock *sb = &o->sb;
	ssize_t n;
	int r;

	*sb = (struct superblock){
		.magic = SUPERBLOCK_MAGIC,
		.version = SUPERBLOCK_VERSION,
		.header_bytes = NVME_FILE_HEADER_BYTES,
		.bytes = o->options->bytes,
		.segment_bytes = o->options->segment_bytes,
		.epoch = m->epoch,
		.number = m->number,
		.count = m->count,
		.present = m->present,
	};
	memcpy(sb->uuid, o->file->uuid, sizeof(sb->uuid));
	memcpy(sb->set, m->set, sizeof(sb->set));
	sb->xxh3 = superblock_xxh3(sb);
	memset(o->buf, 0, SUPERBLOCK_IO_BYTES);
	memcpy(o->buf, sb, sizeof(*sb));
	memcpy(o->buf + SUPERBLOCK_COPY_OFF, sb, sizeof(*sb));
	n = pwrite(o->file->fd, o->buf, SUPERBLOCK_IO_BYTES, 0);
	if (n != (ssize_t)SUPERBLOCK_IO_BYTES) {
		r = n < 0 ? -errno : -ENOSPC;
		return say(o, r, "cannot write its first block: %s", strerror(-r));
	}
	if (fdatasync(o->file->fd) < 0)
		return say(o, -errno, "cannot write its first block: %s", strerror(errno));
	o->file->epoch = sb->epoch;
	memcpy(&o->file->log_id, sb->uuid, sizeof(o->file->log_id));
	return 0;
}

/* All of its space now, so that no write can find the filesystem full later. */
static int take_space(struct opening *o)
{
	const uint64_t bytes = o->options->bytes;

	if (o->file->device)
		return 0;
	if (fchmod(o->file->fd, 0600) < 0)
		return say(o, -errno, "cannot make it private: %s", strerror(errno));
	if (o->file->size_bytes > bytes && ftruncate(o->file->fd, (off_t)bytes) < 0)
		return say(o, -errno, "cannot shrink it: %s", strerror(errno));
	if (fallocate(o->file->fd, 0, 0, (off_t)bytes) == 0)
		return 0;
	if (errno == EOPNOTSUPP)
		return say(o, -EOPNOTSUPP, "its filesystem cannot preallocate (fallocate)");
	return say(o, -errno, "cannot take %llu bytes of space: %s", (unsigned long long)bytes,
		   strerror(errno));
}

static int look(struct opening *o)
{
	int r;

	r = take_lock(o);
	if (r < 0)
		return r;
	r = find_size(o);
	if (r < 0)
		return r;
	r = find_align(o);
	if (r < 0)
		return r;
	r = recognise(o);
	if (r < 0 || !o->ours)
		return r;
	memcpy(o->file->uuid, o->sb.uuid, sizeof(o->file->uuid));
	o->file->member = (struct nvme_member){ .number = o->sb.number,
						.count = o->sb.count,
						.present = o->sb.present,
						.epoch = o->sb.epoch };
	memcpy(o->file->member.set, o->sb.set, sizeof(o->sb.set));
	return 0;
}

static int open_and_look(struct opening *o)
{
	int r = open_any(o);

	return r < 0 ? r : look(o);
}

void nvme_file_give_up(const struct nvme_file_options *options, struct nvme_file *file)
{
	if (file->fd < 0)
		return;
	if (file->created) /* not a full disk's worth of nothing */
		(void)unlink(options->path);
	(void)close(file->fd);
	file->fd = -1;
}

int nvme_file_find(const struct nvme_file_options *options, struct nvme_file *ret, char *err,
		   unsigned err_bytes)
{
	struct nvme_file file = { .fd = -1 };
	struct opening o = {
		.options = options, .file = &file, .err = err, .err_bytes = err_bytes
	};
	int r;

	o.buf = aligned_alloc(NVME_FILE_ALIGN_BYTES_MAX, BLANK_BYTES);
	if (!o.buf)
		return say(&o, -ENOMEM, "out of memory");
	r = open_and_look(&o);
	for (unsigned tries = 0; r == -ESTALE && tries < REMOVED_TRIES; tries++) {
		(void)close(file.fd);
		file.fd = -1;
		r = open_and_look(&o);
	}
	free(o.buf);
	if (r == 0) {
		*ret = file;
		return 0;
	}
	file.created &= r != -EBUSY && r != -ESTALE; /* somebody else may have it meanwhile */
	nvme_file_give_up(options, &file);
	return r;
}

int nvme_file_claim(const struct nvme_file_options *options, struct nvme_file *file,
		    const struct nvme_member *member, int forget, char *err, unsigned err_bytes)
{
	struct opening o = { .options = options, .file = file, .err = err, .err_bytes = err_bytes };
	int r = 0;

	o.buf = aligned_alloc(NVME_FILE_ALIGN_BYTES_MAX, BLANK_BYTES);
	if (!o.buf)
		r = say(&o, -ENOMEM, "out of memory");
	file->fresh = !file->member.epoch || !options->keep || forget;
	file->member = *member;
	if (r == 0 && file->fresh)
		r = make_identity(&o);
	if (r == 0)
		r = write_superblock(&o);
	if (r == 0)
		r = take_space(&o);
	free(o.buf);
	if (r < 0)
		nvme_file_give_up(options, file);
	return r;
}

int nvme_file_open(const struct nvme_file_options *options, struct nvme_file *ret, char *err,
		   unsigned err_bytes)
{
	struct nvme_member member = { .count = 1, .present = 1 };
	struct nvme_file file = { .fd = -1 };
	int r = nvme_file_find(options, &file, err, err_bytes);

	if (r < 0)
		return r;
	member.epoch = file.member.epoch + 1;
	memcpy(member.set, file.member.set, sizeof(member.set));
	if (!file.member.epoch && getrandom(member.set, sizeof(member.set), 0) < 0)
		member.set[0] = 1; /* nobody is to be told from it */
	r = nvme_file_claim(options, &file, &member, 0, err, err_bytes);
	if (r == 0)
		*ret = file;
	return r;
}

void nvme_file_close(struct nvme_file *f)
{
	if (f->fd < 0)
		return;
	/* By hand: a ring that has the file registered keeps it open for a while. */
	(void)set_lock(f->fd, F_UNLCK);
	(void)close(f->fd);
	f->fd = -1;
}
