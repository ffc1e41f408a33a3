cloud-hypervisor --cpus boot=4 --memory size=256M,shared=on
  --net mac=$MAC,vhost_user=true,socket=$SOCKET,num_queues=8,queue_size=256
  --kernel $KERNEL --initramfs $INITRD --cmdline "console=ttyS0 quiet $APPEND"
  --serial tty --console off
