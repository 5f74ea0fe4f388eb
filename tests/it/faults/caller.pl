# A caller that is to be killed: it makes changes of the kinds it is given, in the
# directory it is given, under the lock there, until it dies.
use strict;
use warnings;
use Fcntl qw(:DEFAULT :flock);
use Errno;

my ($dir, @changes) = @ARGV;

sub must { $_[1] or die "$_[0]: $!\n" }

# A server that was started anew may say of a name that the change is made already.
sub named { $_[1] or $!{EEXIST} or $!{ENOENT} or die "$_[0]: $!\n" }

sub made {
    my ($name, $flags) = @_;
    named("open of $name", sysopen(my $file, $name, O_WRONLY | $flags)) or return;
    return unless defined fileno($file);
    must("write of $name", syswrite($file, "dead\n" x 1000));
    must("close of $name", close($file));
}

must("chdir", chdir($dir));
# The lock is opened last, and so closed last when this process dies.
must("open of data", sysopen(my $data, "data", O_RDWR));
must("open of other", sysopen(my $other, "other", O_RDWR));
must("open of lock", sysopen(my $lock, "lock", O_RDWR));
must("lock", flock($lock, LOCK_EX));

my %change = (
    write => sub {
        must("seek", sysseek($data, 0, 0));
        must("write", syswrite($data, "dead\n" x 30_000));
    },
    append   => sub { made("appended", O_APPEND) },
    truncate => sub { must("truncate", truncate("truncated", int rand 1000)) },
    rename   => sub { made("t", O_CREAT | O_TRUNC); named("rename", rename("t", "renamed")) },
    unlink   => sub { named("unlink", unlink("made")); made("made", O_CREAT | O_EXCL) },
    chmod    => sub { must("chmod", chmod((0600, 0640, 0666)[rand 3], "moded")) },
    mkdir    => sub { named("rmdir", rmdir("d")); named("mkdir", mkdir("d")) },
    lock     => sub { must("lock", flock($other, LOCK_EX)); must("unlock", flock($other, LOCK_UN)) },
);

while (1) {
    $change{ $changes[rand @changes] }->();
    select(undef, undef, undef, 0.002);
}
