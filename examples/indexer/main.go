// Command indexer keeps a SQLite file in step with all conversations that it may read.
package main

//go:generate buf generate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig is ignored
	"google.golang.org/grpc/keepalive"

	pb "indexer/gen/conversations/v1"
)

const maxMessageBytes = 32 << 20 // Go receives at most 4 MiB by default; a large item has up to 12

var (
	target        = flag.String("target", "127.0.0.1:50051", "address of the service")
	serviceConfig = flag.String("service-config", "../../deploy/service_config.json", "file with the service config")
	path          = flag.String("index", "index.db", "SQLite file, made if it is missing")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run goes on until ctx ends, or until something is wrong that waiting does not mend.
func run(ctx context.Context) error {
	reading, err := dial()
	if err != nil {
		return err
	}
	defer reading.Close()
	watching, err := dialForWatches()
	if err != nil {
		return err
	}
	defer watching.Close()
	index, err := openIndex(ctx, *path)
	if err != nil {
		return err
	}
	defer index.close()

	indexer := &indexer{
		reading:  pb.NewConversationsServiceClient(reading),
		watching: pb.NewConversationsServiceClient(watching),
		index:    index,
	}
	recovery := recovery{pause: firstPause}
	for {
		// A call of a listing may fail although it was retried: everything begins again behind the stored token.
		if err := recovery.after(ctx, indexer.run(ctx)); err != nil {
			return err
		}
	}
}

// dial returns a connection without TLS. On Unix sockets Go sends the authority "localhost" by default.
func dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	config, err := os.ReadFile(*serviceConfig)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(*target, append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
	)...)
}

// dialForWatches returns a connection whose streams are resumed by token instead of retried, and which looks for a lost
// server often.
func dialForWatches() (*grpc.ClientConn, error) {
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = longestPause
	return dial(
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
	)
}
