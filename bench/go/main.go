// The minimal server of bench/limit.py in Go: the same contract, the same statements, grpc-go and pgx.
//
// bench/go_target.py builds and starts it, and passes the statements, so that both servers run the same.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"

	pb "limit/gen/conversations/v1"
)

//go:generate buf generate

// statements are those of bench/limit.py, by the names of its constants.
type statements struct {
	Schema     string `json:"SCHEMA"`
	Create     string `json:"CREATE"`
	Get        string `json:"GET"`
	Append     string `json:"APPEND"`
	Newest     string `json:"NEWEST"`
	Oldest     string `json:"OLDEST"`
	One        string `json:"ONE"`
	Some       string `json:"SOME"`
	Update     string `json:"UPDATE"`
	DeleteItem string `json:"DELETE_ITEM"`
	Delete     string `json:"DELETE"`
}

func main() {
	url := flag.String("database-url", "", "the database, which gets the tables of the schema")
	listen := flag.String("listen", "127.0.0.1:0", "host:port; port 0 takes any free one")
	encoded := flag.String("statements", "", "a JSON object of them")
	flag.Parse()
	var run statements
	if err := json.Unmarshal([]byte(*encoded), &run); err != nil {
		log.Fatalf("statements: %v", err)
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := serve(stop, *url, *listen, run); err != nil {
		log.Fatal(err)
	}
}

// serve returns at SIGTERM; the first line printed says where it serves.
func serve(stop context.Context, url, listen string, run statements) error {
	pool, err := connect(url, run.Schema)
	if err != nil {
		return err
	}
	defer pool.Close()
	socket, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	pb.RegisterConversationsServiceServer(server, &limit{pool: pool, run: run})
	pb.RegisterAccessServiceServer(server, &access{pool: pool, run: run})
	go func() {
		<-stop.Done()
		server.GracefulStop()
	}()
	fmt.Fprintf(os.Stdout, "Limit on %s, ready\n", socket.Addr())
	return server.Serve(socket)
}

// connect makes the pool that bench/limit.py makes: ten connections, the same settings.
func connect(url, schema string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MinConns, config.MaxConns = 1, 10
	config.ConnConfig.RuntimeParams["jit"] = "off"
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	_, err = pool.Exec(context.Background(), schema)
	return pool, err
}
