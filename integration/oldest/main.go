// Asks the library of the oldest Kubernetes version that the chart supports whether it takes our CRDs, and prints the
// estimated costs of their rules. A newer API server takes rules that an older one refuses as too expensive.
package main

import (
	"context"
	"fmt"
	"os"
	"sort"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// A cost of one expression, with its share of the limit that one expression has.
type cost struct {
	path  string
	value uint64
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: oldest CRD.yaml…")
		os.Exit(2)
	}
	failed := false
	for _, file := range os.Args[1:] {
		if err := check(file); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func check(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	crd := &v1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, crd); err != nil {
		return err
	}
	v1.SetDefaults_CustomResourceDefinition(crd)
	v1.SetDefaults_CustomResourceDefinitionSpec(&crd.Spec)
	// The API server sets it when it stores the object.
	crd.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	internal := &apiextensions.CustomResourceDefinition{}
	if err := v1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(crd, internal, nil); err != nil {
		return err
	}
	errors := validation.ValidateCustomResourceDefinition(context.Background(), internal)
	for _, each := range errors {
		message := each.Error()
		if len(message) > 2000 {
			message = message[:1000] + " … " + message[len(message)-1000:]
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", crd.Name, message)
	}
	costs := &[]cost{}
	schema := internal.Spec.Validation
	if schema == nil {
		schema = internal.Spec.Versions[0].Schema
	}
	if err := estimate("", schema.OpenAPIV3Schema, validation.RootCELContext(schema.OpenAPIV3Schema), costs); err != nil {
		return err
	}
	report(crd.Name, *costs)
	if len(errors) > 0 {
		return fmt.Errorf("Kubernetes 1.30 refuses it")
	}
	return nil
}

// Adds the estimated costs of the expressions at this schema and below.
func estimate(path string, schema *apiextensions.JSONSchemaProps, at *validation.CELSchemaContext, costs *[]cost) error {
	if len(schema.XValidations) > 0 {
		info, err := at.TypeInfo()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion(), true)
		results, err := cel.Compile(info.Schema, info.DeclType, celconfig.PerCallLimit, base, cel.NewExpressionsEnvLoader())
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for i, result := range results {
			times := result.MaxCardinality
			if at.MaxCardinality != nil {
				times = *at.MaxCardinality
			}
			*costs = append(*costs, cost{fmt.Sprintf("%s rule %d", path, i), result.MaxCost * times})
			if result.MessageExpression != nil {
				*costs = append(*costs, cost{fmt.Sprintf("%s messageExpression %d", path, i), result.MessageExpressionMaxCost})
			}
		}
	}
	for name, property := range schema.Properties {
		property := property
		if err := estimate(path+"."+name, &property, at.ChildPropertyContext(&property, name), costs); err != nil {
			return err
		}
	}
	if more := schema.AdditionalProperties; more != nil && more.Schema != nil {
		if err := estimate(path+"{}", more.Schema, at.ChildAdditionalPropertiesContext(more.Schema), costs); err != nil {
			return err
		}
	}
	if items := schema.Items; items != nil && items.Schema != nil {
		return estimate(path+"[]", items.Schema, at.ChildItemsContext(items.Schema), costs)
	}
	return nil
}

func report(name string, costs []cost) {
	sort.Slice(costs, func(i, j int) bool { return costs[i].value > costs[j].value })
	total := uint64(0)
	for _, one := range costs {
		total += one.value
	}
	fmt.Printf("%s: %.1f million of %d million\n", name, float64(total)/1e6, validation.StaticEstimatedCRDCostLimit/1000000)
	for i, one := range costs {
		if i < 8 {
			fmt.Printf("  %.2f million of %d million: %s\n", float64(one.value)/1e6, validation.StaticEstimatedCostLimit/1000000, one.path)
		}
	}
}
